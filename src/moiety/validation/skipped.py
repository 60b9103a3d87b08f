"""Why a row cannot be predicted."""

from __future__ import annotations


class SkippedRow(Exception):  # noqa: N818 - a row that cannot be predicted is no error
    """The row cannot be predicted; the message says why."""
