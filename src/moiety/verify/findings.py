"""Findings: what the checks of a finished plan have to say, each with the numbers compared."""

from __future__ import annotations

from typing import Literal

from moiety.records import Record
from moiety.verify.audit import AuditReport

Severity = Literal["ok", "warning", "error"]
Value = float | str | None


class Finding(Record):
    """The result of one comparison."""

    check: str
    severity: Severity
    subject: str
    """What was looked at: a pool, a layer, a file's field."""
    message: str
    expected: Value = None
    actual: Value = None


class Summary(Record):
    """How many findings and verdicts there are of each kind."""

    num_checks: int
    num_ok: int
    num_warnings: int
    num_errors: int
    passed: bool
    """No finding is an error."""


class Verification(Record):
    """All findings about a plan, and the audit of claims about it where there are claims."""

    plan: str
    strategy: str
    summary: Summary
    findings: tuple[Finding, ...]
    audit: AuditReport | None = None

    @property
    def passed(self) -> bool:
        """Whether no finding is an error."""
        return self.summary.passed


def judged(
    check: str,
    subject: str,
    message: str,
    *,
    holds: bool,
    expected: Value = None,
    actual: Value = None,
    otherwise: Severity = "error",
) -> Finding:
    """Return an ok finding where the rule holds, one of severity `otherwise` where it does not."""
    severity: Severity = "ok" if holds else otherwise
    return Finding(check=check, severity=severity, subject=subject, message=message, expected=expected, actual=actual)
