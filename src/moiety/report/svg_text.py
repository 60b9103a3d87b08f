"""Rectangles and text as SVG."""

from __future__ import annotations

import re
from html import escape

_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What XML may not hold, or nobody can see."""


def number(value: float) -> str:
    """Return a length with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def printable(words: str) -> str:
    """Return words as XML may hold them."""
    return escape(_UNSEEN.sub("?", words), quote=False)


def rectangle(x: float, y: float, width: float, height: float, fill: str) -> str:
    """Return a filled rectangle."""
    place = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
    return f'<rect {place} fill="{fill}"/>'


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: float,
    anchor: str = "start",
    bold: bool = False,
    fill: str | None = None,
) -> str:
    """Return a line of text whose baseline is at `y`; `anchor` says which of its ends, or its middle, is at `x`."""
    attributes = f'x="{number(x)}" y="{number(y)}" font-size="{number(size)}"'
    attributes += "" if anchor == "start" else f' text-anchor="{anchor}"'
    attributes += ' font-weight="bold"' if bold else ""
    attributes += "" if fill is None else f' fill="{fill}"'
    return f"<text {attributes}>{printable(words)}</text>"
