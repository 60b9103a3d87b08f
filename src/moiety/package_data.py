"""The catalogue that the package carries: one file an entry, in a folder a kind."""

from __future__ import annotations

from pathlib import Path

_CATALOG = Path(__file__).parent / "catalog"


def catalog_names(kind: str, suffix: str = ".yaml") -> tuple[str, ...]:
    """Return the names of the entries of one kind (`clusters`, `devices`, ...), sorted."""
    return tuple(sorted(each.name.removesuffix(suffix) for each in (_CATALOG / kind).glob(f"*{suffix}")))


def catalog_text(kind: str, name: str, suffix: str = ".yaml") -> str:
    """Return the text of one entry; `name` is one of `catalog_names(kind)`."""
    return (_CATALOG / kind / f"{name}{suffix}").read_text(encoding="utf-8")
