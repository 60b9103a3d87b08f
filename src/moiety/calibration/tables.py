"""Tables of measured times: of kernels by their shape, of collectives by group and size."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from moiety.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from moiety.dtypes import Dtype

Key = tuple[str | int, ...]
"""What must agree exactly: the family of kernels first, then number format, heads, experts, group, ..."""


class TableSource(Record):
    """Which tables times came from; `sha256` is over the paths and the bytes of all files that were read."""

    name: Annotated[str, Field(max_length=200)]
    """Whose they are: system, engine and release, device."""
    folder: Annotated[str, Field(max_length=4096)]
    """The argument that named them."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class MeasuredRates:
    """Rates of the machine that the tables count for: what changes on a slower one, the laws say."""

    peak_flops_per_s: Mapping[Dtype, float]
    link_bytes_per_s: float
    """One way, per GPU, in the innermost domain of links."""
    outer_bytes_per_s: tuple[float, ...] = ()
    """The same on every tier beyond; not known where it is left out."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Measured seconds over one axis, `points` growing; or, below each point, grids over the axes that follow.

    Rows may be missing anywhere: each point has an axis of its own below it.
    """

    points: tuple[float, ...]
    below: tuple[Grid, ...] | tuple[float, ...]

    def at(self, *point: float) -> float | None:
        """Return the seconds at a point with a coordinate for each axis; None outside of what was measured.

        Between measured points every axis is a line over logarithms: kernels follow powers of their sizes.
        """
        where, rest = point[0], point[1:]
        index = bisect_left(self.points, where)
        if index < len(self.points) and self.points[index] == where:
            return self._value(index, rest)
        if index in {0, len(self.points)}:
            return None
        low, high = self._value(index - 1, rest), self._value(index, rest)
        if low is None or high is None:
            return None
        span = math.log(self.points[index] / self.points[index - 1])
        along = math.log(where / self.points[index - 1]) / span
        return math.exp((1 - along) * math.log(low) + along * math.log(high))

    def _value(self, index: int, rest: tuple[float, ...]) -> float | None:
        value = self.below[index]
        return value.at(*rest) if isinstance(value, Grid) else value


@dataclass(frozen=True, slots=True)
class KernelTables:
    """Measured seconds of one device, engine and release, by key."""

    source: TableSource
    rates: MeasuredRates
    grids: Mapping[Key, Grid] = field(compare=False, repr=False)

    def seconds(self, key: Key, *point: float) -> float | None:
        """Return the seconds at a point of the key's grid; None where the tables do not cover it."""
        grid = self.grids.get(key)
        return None if grid is None else grid.at(*point)


def grid_of(rows: Iterable[tuple[tuple[float, ...], float]]) -> Grid:
    """Return the grid of rows (point, seconds); of several kernels measured at one point the fastest counts."""
    nested: dict[float, list[tuple[tuple[float, ...], float]]] = {}
    for point, seconds in rows:
        nested.setdefault(point[0], []).append((point[1:], seconds))
    points = sorted(nested)
    if nested[points[0]][0][0]:
        return Grid(tuple(points), tuple(grid_of(nested[each]) for each in points))
    return Grid(tuple(points), tuple(min(seconds for _, seconds in nested[each]) for each in points))
