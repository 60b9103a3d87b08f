"""A heat map: rows by columns of shares as colours, with the totals of the columns below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.report.svg_text import number, rectangle, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.placement.problem import Loads

LEVELS = 40
_SCALE = ((0xE6, 0xF0, 0xFA), (0x7F, 0xB2, 0xDD), (0x2B, 0x6C, 0xB0), (0x08, 0x25, 0x54))
"""Colours from nothing to the most."""
_EMPTY = "#f7f7f5"
_HEIGHT = 520.0
_HIGHEST_CELL = 20.0
_LOWEST_CELL = 1.5
_LINED_CELL = 7.0
_TOTAL_ROOM = 34.0
_QUIET = "#52606d"


@dataclass(frozen=True, slots=True, eq=False)
class HeatMap:
    """What is drawn: shares [rows, columns], NaN where there is nothing, and a total for each column, [columns]."""

    shares: Loads
    column_totals: Loads

    @property
    def cell_height(self) -> float:
        """Height of a row."""
        return min(max(_HEIGHT / self.shares.shape[0], _LOWEST_CELL), _HIGHEST_CELL)

    @property
    def height(self) -> float:
        """Height of the map, the totals below it included."""
        return self.shares.shape[0] * self.cell_height + _TOTAL_ROOM


def colour(share: float) -> str:
    """Return the colour of a share of the most, from 0 to 1."""
    at = min(max(share, 0.0), 1.0) * (len(_SCALE) - 1)
    low = min(int(at), len(_SCALE) - 2)
    mixed = (round(a + (b - a) * (at - low)) for a, b in zip(_SCALE[low], _SCALE[low + 1], strict=True))
    return "#" + "".join(f"{each:02x}" for each in mixed)


def heat_map(drawn: HeatMap, *, left: float, top: float, width: float, most: float) -> Iterator[str]:
    """Yield the SVG of a map; `most` is the share of the darkest colour. Column numbers stand above `top`."""
    rows, columns = drawn.shares.shape
    wide, high = width / columns, drawn.cell_height
    yield rectangle(left, top, width, rows * high, _EMPTY)
    yield from _cells(drawn.shares / most, left, top, wide, high)
    for column in range(1, columns):
        yield rectangle(left + column * wide - 0.5, top, 1, rows * high, "#ffffff")
    for row in range(1, rows if high >= _LINED_CELL else 0):
        yield rectangle(left, top + row * high - 0.5, width, 1, "#ffffff")
    bottom = top + rows * high
    step = max(1, int(np.ceil(44 / wide)))
    totals = [f"{each:.3f}" for each in drawn.column_totals.tolist()]
    for column in range(0, columns, step):
        middle = left + (column + 0.5) * wide
        name = f"node {column}" if step == 1 else str(column)
        yield text(middle, top - 8, name, size=11, anchor="middle", fill=_QUIET)
        yield text(middle, bottom + 14, totals[column], size=11, anchor="middle")
    which = "" if step == 1 else f", every {step}th node" if step > 3 else ", every other node"  # noqa: PLR2004
    said = f"tokens that reach the node from others, per token of the layer{which}"
    yield text(left, bottom + 30, said, size=11, fill=_QUIET)


def _cells(shares: Loads, left: float, top: float, wide: float, high: float) -> Iterator[str]:
    """Yield one path for each level of colour, of all its cells."""
    levels = np.where(np.isnan(shares), -1, np.round(np.nan_to_num(shares) * (LEVELS - 1))).astype(np.int64)
    for level in np.unique(levels[levels >= 0]).tolist():
        pieces = [
            f"M{number(left + column * wide)} {number(top + row * high)}h{number(wide)}v{number(high)}h-{number(wide)}z"
            for row, column in np.argwhere(levels == level).tolist()
        ]
        yield f'<path fill="{colour(level / (LEVELS - 1))}" d="{"".join(pieces)}"/>'
