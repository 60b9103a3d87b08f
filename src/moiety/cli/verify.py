"""`moiety verify`: the findings about a finished plan, and the audit of claims."""

from __future__ import annotations

from typing import Annotated

import typer

from moiety.cli.output import JsonSwitch, Output, QuietSwitch


def verify(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="The plan's method JSON, or the folder that holds it.")],
    *,
    claims: Annotated[
        str | None,
        typer.Option(
            help="A YAML file of claims to audit; without it those of the catalogue about this scenario.",
            show_default=False,
        ),
    ] = None,
    json: JsonSwitch = False,
    quiet: QuietSwitch = False,
) -> None:
    """Check a finished plan again, and audit claims about it. Leaves with 1 where a check finds an error."""
    from moiety.cli.finding_tables import finding_section, full_audit_section
    from moiety.cli.json_text import json_text
    from moiety.cli.plan_file import calibration_of, load_plan
    from moiety.cli.verification import leave_if_wrong, verified
    from moiety.files import read_text
    from moiety.verify.claims import read_claims

    output = Output(json, quiet)
    made, path = load_plan(plan)
    calibration = calibration_of(made, str(path))
    claimed = read_claims(read_text(claims), source=claims) if claims is not None else None
    verification = verified(made, calibration, claims=claimed)
    output.document(lambda: json_text(verification.model_dump(mode="json")))
    sections = [finding_section(verification, everything=True)] if output.shows_tables else []
    if output.shows_tables and verification.audit is not None:
        sections.append(full_audit_section(verification.audit))
    output.tables(sections)
    leave_if_wrong(verification, output)
