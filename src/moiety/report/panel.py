"""Panel: one pool of the plan as boxes in lanes and columns and the arrows between them, before any length is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moiety.report.spans import axis_spans

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moiety.graph.graph import Graph
    from moiety.plan import Plan, Pool
    from moiety.report.lanes import Lane
    from moiety.report.segments import Segment
    from moiety.report.spans import Span
    from moiety.strategy.strategy import Axis

GUTTER = "gutter:"
"""Columns without boxes, in which wires run from band to band, start with this."""


@dataclass(frozen=True, slots=True)
class Box:
    """A box in one column; a bar covers all of its lanes, and is a communication."""

    key: str
    lines: tuple[str, ...]
    style: str
    column: str
    first_lane: int
    last_lane: int
    facts: tuple[tuple[str, str], ...]
    is_bar: bool = False
    band: int | None = None
    """The band it belongs to; None: it belongs to several."""


@dataclass(frozen=True, slots=True)
class Arrow:
    """An edge that runs inside one lane."""

    tail: str
    head: str
    lane: int
    style: str = "plain"


@dataclass(frozen=True, slots=True)
class Wire:
    """An edge from one band to another, through the gutters beside the two boxes."""

    tail: str
    head: str
    tail_gutter: str
    head_gutter: str
    tail_band: int
    head_band: int


@dataclass(slots=True)
class Panel:
    """A pool's drawing in the making."""

    plan: Plan
    pool: Pool
    graph: Graph
    lanes: tuple[Lane, ...]
    segments: tuple[Segment, ...]
    columns: list[str] = field(default_factory=list[str])
    boxes: dict[str, Box] = field(default_factory=dict[str, Box])
    arrows: dict[tuple[str, str], Arrow] = field(default_factory=dict[tuple[str, str], Arrow])
    wires: list[Wire] = field(default_factory=list[Wire])
    spans: dict[Axis, tuple[Span, ...]] = field(default_factory=dict["Axis", "tuple[Span, ...]"])

    @property
    def num_bands(self) -> int:
        """Bands of the pool."""
        return self.lanes[-1].band + 1

    def band_lanes(self, band: int) -> range:
        """Return the lanes of a band."""
        inside = [number for number, lane in enumerate(self.lanes) if lane.band == band]
        return range(inside[0], inside[-1] + 1)

    def add(self, box: Box) -> str:
        """Add a box and return its key."""
        assert box.key not in self.boxes, box.key
        self.boxes[box.key] = box
        return box.key

    def connect(self, tails: Iterable[str], head: str, lane: int, style: str = "plain") -> None:
        """Add arrows to `head`; the first lane that asks for an arrow gets it."""
        for tail in tails:
            self.arrows.setdefault((tail, head), Arrow(tail, head, lane, style))

    def spans_of(self, axis: Axis) -> tuple[Span, ...]:
        """Return the spans of an axis of the pool."""
        if axis not in self.spans:
            self.spans[axis] = axis_spans(self.pool, self.lanes, self.plan.cluster, axis)
        return self.spans[axis]


def rank_text(lanes: Sequence[Lane]) -> str:
    """Return the ranks of some lanes as ranges, e.g. `0-7, 16-23`."""
    parts: list[tuple[int, int]] = []
    for lane in lanes:
        if parts and parts[-1][1] + 1 == lane.first_rank:
            parts[-1] = (parts[-1][0], lane.last_rank)
        else:
            parts.append((lane.first_rank, lane.last_rank))
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
