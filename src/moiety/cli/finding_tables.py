"""Findings and the audit of claims, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cli.table import table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moiety.verify.audit import AuditReport
    from moiety.verify.findings import Verification

_HOLDS = "holds"


def finding_section(verification: Verification, *, everything: bool = False) -> RenderableType:
    """Return the errors and warnings, or every finding, under their counts."""
    summary = verification.summary
    title = (
        f"Verification {'passed' if summary.passed else 'FAILED'}: {summary.num_checks} checks, {summary.num_ok} hold, "
    )
    title += f"{summary.num_warnings} warnings, {summary.num_errors} errors"
    shown = [each for each in verification.findings if everything or each.severity != "ok"]
    rows = [(each.severity, each.check, f"{each.subject}: {each.message}") for each in shown]
    return table(title, ("finding", "check", "what was compared"), rows)


def audit_title(audit: AuditReport) -> str:
    """Return what was audited, and how many claims got which verdict."""
    counts = "; ".join(f"{number} {verdict}" for verdict, number in audit.num_by_verdict.items())
    return f"Audit of {len(audit.verdicts)} claims ({audit.claims}, strategy {audit.strategy}): {counts}"


def audit_section(audit: AuditReport, plan: str) -> RenderableType:
    """Return the claims that do not hold, each with the beginning of the arithmetic; the others by name."""
    rows = [
        (each.claim, each.claimed, each.verdict, each.reasons[0].partition(": ")[2])
        for each in audit.verdicts
        if each.verdict != _HOLDS
    ]
    held = ", ".join(each.claim for each in audit.verdicts if each.verdict == _HOLDS)
    notes = [f"hold: {held}"] if held else []
    columns = ("claim", "claimed", "verdict", "~arithmetic")
    return table(
        audit_title(audit), columns, rows, notes=[*notes, f"`moiety verify {plan}` gives the arithmetic in full."]
    )


def full_audit_section(audit: AuditReport) -> RenderableType:
    """Return every claim with its verdict and all of the arithmetic."""
    rows = [(each.claim, each.claimed, each.sentence, "\n".join(each.reasons)) for each in audit.verdicts]
    return table(audit_title(audit), ("claim", "claimed", "verdict", "arithmetic"), rows)
