"""Routing: tracks for lines that may not lie on each other, and the corners of arrows in a lane."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from moiety.report.panel import Arrow, Panel


@dataclass(frozen=True, slots=True)
class Route:
    """How an arrow runs: straight between neighbours, or on a track below the boxes of its lane."""

    arrow: Arrow
    track: int | None
    entry: int
    """How many arrows from tracks enter the head further left."""


def tracks(intervals: Mapping[Hashable, tuple[float, float]]) -> dict[Hashable, int]:
    """Return the lowest free track for each interval; intervals on one track do not touch each other."""
    ends: list[float] = []
    chosen: dict[Hashable, int] = {}
    for key, (low, high) in sorted(intervals.items(), key=lambda item: (item[1], str(item[0]))):
        free = next((track for track, end in enumerate(ends) if end < low), len(ends))
        ends[free : free + 1] = [high]
        chosen[key] = free
    return chosen


def lane_routes(panel: Panel) -> tuple[list[Route], int]:
    """Return a route for each arrow of a panel, and how many tracks its busiest lane needs.

    Arrows of one box share a track, so that they read as one line with branches.
    """
    place = {column: number for number, column in enumerate(panel.columns)}
    taken: dict[int, set[int]] = defaultdict(set)
    for box in panel.boxes.values():
        for lane in range(box.first_lane, box.last_lane + 1):
            taken[lane].add(place[box.column])
    by_lane: dict[int, list[Arrow]] = defaultdict(list)
    for arrow in panel.arrows.values():
        by_lane[arrow.lane].append(arrow)
    routes: list[Route] = []
    most = 0
    for lane, arrows in by_lane.items():
        found = _routes(arrows, {arrow: _ends(panel, place, arrow) for arrow in arrows}, taken[lane])
        routes += found
        most = max([most, *(route.track + 1 for route in found if route.track is not None)])
    return routes, most


def _ends(panel: Panel, place: dict[str, int], arrow: Arrow) -> tuple[int, int]:
    return place[panel.boxes[arrow.tail].column], place[panel.boxes[arrow.head].column]


def _routes(arrows: list[Arrow], ends: dict[Arrow, tuple[int, int]], taken: set[int]) -> Iterable[Route]:
    skipping = [arrow for arrow in arrows if any(ends[arrow][0] < at < ends[arrow][1] for at in taken)]
    nets: dict[Hashable, tuple[float, float]] = {}
    for arrow in skipping:
        low, high = ends[arrow]
        nets[arrow.tail] = (low, max(high, nets.get(arrow.tail, (0, 0))[1]))
    track = tracks(nets)
    entries: dict[str, int] = defaultdict(int)
    found = [Route(arrow, None, 0) for arrow in arrows if arrow not in skipping]
    for arrow in sorted(skipping, key=lambda each: -track[each.tail]):
        found.append(Route(arrow, track[arrow.tail], entries[arrow.head]))
        entries[arrow.head] += 1
    return found
