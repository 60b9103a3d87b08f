"""Verification of a finished plan: every check, and the audit of claims where there are claims."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from moiety.verify.checks.table import FIGURES, STRUCTURE
from moiety.verify.findings import Finding, Summary, Verification, judged
from moiety.verify.inspection import Inspection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.calibration.calibration import Calibration
    from moiety.plan import Plan
    from moiety.projection.project import Evaluation
    from moiety.verify.audit import AuditReport


def verify_plan(plan: Plan, calibration: Calibration, evaluation: Evaluation | None = None) -> tuple[Finding, ...]:
    """Return the findings about a finished plan.

    Its decisions are evaluated again; `evaluation` saves that where `plan` has just been made. A plan whose structure
    is wrong has no figures to check, and the findings say so.
    """
    inspection = Inspection(plan, calibration, evaluation)
    found = [finding for check in STRUCTURE for finding in check(inspection)]
    if any(finding.severity == "error" for finding in found):
        message = "the structure is wrong, so memory, performance and simulation were not checked"
        return (*found, judged("figures", "the plan", message, holds=False, otherwise="warning"))
    found += [finding for check in FIGURES for finding in check(inspection)]
    return tuple(found)


def verification(plan: Plan, findings: Sequence[Finding], audit: AuditReport | None = None) -> Verification:
    """Return the record that is written beside the plan."""
    counts = Counter(finding.severity for finding in findings)
    return Verification(
        plan=plan.name,
        strategy=" + ".join(pool.strategy.name for pool in plan.pools),
        summary=Summary(
            num_checks=len(findings),
            num_ok=counts["ok"],
            num_warnings=counts["warning"],
            num_errors=counts["error"],
            passed=counts["error"] == 0,
        ),
        findings=tuple(findings),
        audit=audit,
    )
