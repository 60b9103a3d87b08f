"""The verification of a plan: its findings and, where there are claims about the scenario, their audit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from moiety.errors import InputError

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.cli.output import Output
    from moiety.plan import Options, Plan
    from moiety.projection.project import Evaluation
    from moiety.verify.audit import AuditReport
    from moiety.verify.claims import ClaimSet, VariantName
    from moiety.verify.findings import Verification

FAILED = 1
"""Exit code where a check found errors."""


def verified(
    plan: Plan, calibration: Calibration, *, claims: ClaimSet | None = None, evaluation: Evaluation | None = None
) -> Verification:
    """Return the findings on a plan, and the audit of `claims` or of the catalogue's claims about its scenario.

    A plan whose structure is wrong has no figures to compare claims with, so it is not audited. Claims that are given
    and are about another scenario raise InputError.
    """
    from moiety.verify.claims import claims_about
    from moiety.verify.verify import verification, verify_plan

    findings = verify_plan(plan, calibration, evaluation)
    claims = claims or claims_about(plan.model.name, plan.cluster.name, plan.workload.name)
    sound = all(each.severity != "error" for each in findings)
    return verification(plan, findings, _audited(plan, calibration, claims) if claims and sound else None)


def _audited(plan: Plan, calibration: Calibration, claims: ClaimSet) -> AuditReport:
    from moiety.search.options import baseline_options, enhanced_options, original_options
    from moiety.verify.audit import audit
    from moiety.verify.case import claimed_plans

    choices: dict[VariantName, Options] = {
        "baseline": baseline_options(plan.options),
        "original": original_options(plan.options),
        "enhanced": enhanced_options(plan.options),
    }
    plans = claimed_plans(claims, plan, choices, calibration)
    if not plans:
        rule = f"the claims are about a strategy that does not fit {plan.cluster.name}"
        raise InputError(rule, source=claims.name, field="strategy", value=claims.strategy)
    return audit(claims, plans, calibration)


def refuse_unsound(plan: Plan, calibration: Calibration, source: str) -> None:
    """Raise InputError where the plan's structure is wrong, so that nothing can be computed from it."""
    from moiety.verify.checks.table import STRUCTURE
    from moiety.verify.inspection import Inspection

    inspection = Inspection(plan, calibration)
    wrong = [each for check in STRUCTURE for each in check(inspection) if each.severity == "error"]
    if wrong:
        first = wrong[0]
        raise InputError(
            f"the plan cannot run: {first.message}",
            source=source,
            field=f"{first.check} ({first.subject})",
            remedy="`moiety verify` lists every finding",
        )


def leave_if_wrong(verification: Verification, output: Output) -> None:
    """Say on standard error that the plan fails its verification, and leave with 1, where it does."""
    if verification.passed:
        return
    wrong = [each for each in verification.findings if each.severity == "error"]
    first = f"{wrong[0].check}: {wrong[0].message}"
    output.complain(f"the plan fails its verification: {len(wrong)} of {len(verification.findings)} checks; {first}")
    raise typer.Exit(FAILED)
