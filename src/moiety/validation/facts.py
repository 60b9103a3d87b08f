"""The compact set of published measurements that the package carries, to hold its own accuracy."""

from __future__ import annotations

from moiety.package_data import catalog_text
from moiety.validation.rows import ReadRows, rows_of_text

FACTS = "facts"


def catalog_facts() -> ReadRows:
    """Return the catalogue's measurements."""
    return rows_of_text(catalog_text("measurements", FACTS, ".jsonl").encode(), "catalogue measurements")
