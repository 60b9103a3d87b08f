"""Where the boxes and arrows of a panel lie on the page."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moiety.report.band_text import band_facts, band_strips, band_title
from moiety.report.drawing import Frame, Line, Shape, safe_width, width_of
from moiety.report.panel import GUTTER
from moiety.report.routing import lane_routes, tracks

if TYPE_CHECKING:
    from collections.abc import Hashable

    from moiety.report.drawing import Point
    from moiety.report.panel import Box, Panel, Wire
    from moiety.report.routing import Route

BOX_HEIGHT = 46.0
COLUMN_GAP = 24.0
BAR_RISE = 3.0
"""How far bars reach above the boxes of their first lane, so that their text keeps clear of the edge."""
TRACK = 5.0
LANE_GAP = 8.0
BAND_HEAD = 60.0
BAND_GAP = 26.0
STRIP_HEIGHT = 16.0
MARGIN = 16.0


@dataclass(frozen=True, slots=True)
class PlacedPanel:
    """A panel's shapes and lines on the page."""

    frames: tuple[Frame, ...]
    shapes: tuple[Shape, ...]
    lines: tuple[Line, ...]
    right: float
    bottom: float
    gutters: dict[str, float]
    """Left edge of each gutter."""
    by_key: dict[str, Shape]


def place_panel(panel: Panel, top: float) -> PlacedPanel:
    """Return a panel whose upper edge is at `top`."""
    routes, num_tracks = lane_routes(panel)
    wire_tracks, gap_tracks = _wire_tracks(panel)
    columns, right = _columns(panel, wire_tracks)
    lane_height = BOX_HEIGHT + TRACK * num_tracks + (4 if num_tracks else 0)
    band_tops, lane_tops, bottom = _rows(panel, top, lane_height, gap_tracks)
    shapes = {box.key: _shape(box, columns, lane_tops, lane_height) for box in panel.boxes.values()}
    lines = [_arrow(route, panel, shapes, lane_tops) for route in routes]
    lines += [
        _wire(wire, number, panel, shapes, columns, band_tops, wire_tracks) for number, wire in enumerate(panel.wires)
    ]
    frames = tuple(
        _frame(panel, band, (band_tops[band], lane_tops, lane_height, right), columns, shapes)
        for band in range(panel.num_bands)
    )
    free = tuple(shapes[box.key] for box in panel.boxes.values() if box.band is None)
    gutters = {name: left for name, (left, _) in columns.items() if name.startswith(GUTTER)}
    return PlacedPanel(frames, free, tuple(lines), right + MARGIN, bottom, gutters, shapes)


Columns = dict[str, tuple[float, float]]
"""Left edge and width of each column."""


def _columns(panel: Panel, wire_tracks: dict[tuple[str, int], int]) -> tuple[Columns, float]:
    widths: dict[str, float] = defaultdict(float)
    measured: dict[tuple[str, ...], float] = {}
    for box in panel.boxes.values():
        if box.lines not in measured:
            measured[box.lines] = width_of(box.lines)
        widths[box.column] = max(widths[box.column], measured[box.lines])
    columns: Columns = {}
    headings = {
        names[-1]: (names[0], text) for band in range(panel.num_bands) for _, text, names in band_strips(panel, band)
    }
    left = 2 * MARGIN
    for name in panel.columns:
        if name.startswith(GUTTER):
            used = max([1, *(track + 1 for (gutter, _), track in wire_tracks.items() if gutter == name)])
            widths[name] = (used - 1) * TRACK
        columns[name] = left, widths[name]
        left += widths[name] + COLUMN_GAP
        left = max(left, _heading_end(name, headings, columns))
    return columns, left - COLUMN_GAP + MARGIN


def _heading_end(name: str, headings: dict[str, tuple[str, str]], columns: Columns) -> float:
    """Return where the next column may start so that the heading of a segment that ends here has room."""
    if name not in headings:
        return 0.0
    first, text = headings[name]
    return columns[first][0] + width_of([text]) + COLUMN_GAP


def _rows(
    panel: Panel, top: float, lane_height: float, gap_tracks: dict[int, int]
) -> tuple[list[float], list[float], float]:
    """Return the upper edges of the bands and of the lanes, and the lower edge of the panel."""
    band_tops: list[float] = []
    lane_tops: list[float] = []
    y = top
    for lane in panel.lanes:
        if lane.band == len(band_tops):
            y += BAND_GAP + TRACK * gap_tracks.get(lane.band, 0)
            band_tops.append(y)
            y += BAND_HEAD
        lane_tops.append(y)
        y += lane_height + LANE_GAP
    return band_tops, lane_tops, y


def _shape(box: Box, columns: Columns, lane_tops: list[float], lane_height: float) -> Shape:
    left, width = columns[box.column]
    top = lane_tops[box.first_lane]
    height = BOX_HEIGHT
    if box.is_bar:
        top -= BAR_RISE
        height = lane_tops[box.last_lane] - top + lane_height
    return Shape(box.key, box.lines, left, top, width, height, box.style, box.facts, at_top=box.is_bar)


def _arrow(route: Route, panel: Panel, shapes: dict[str, Shape], lane_tops: list[float]) -> Line:
    arrow = route.arrow
    tail, head = shapes[arrow.tail], shapes[arrow.head]
    lane_top = lane_tops[arrow.lane]
    if route.track is None:
        y = lane_top + BOX_HEIGHT / 2
        points: tuple[Point, ...] = ((tail.left + tail.width, y), (head.left, y))
    else:
        y, floor = lane_top + BOX_HEIGHT + TRACK * (route.track + 1), lane_top + BOX_HEIGHT
        start, end = tail.left + tail.width - 8, head.left + 8 + 7 * route.entry
        first = ((tail.left + tail.width, y),) if panel.boxes[arrow.tail].is_bar else ((start, floor), (start, y))
        last = ((head.left, y),) if panel.boxes[arrow.head].is_bar else ((end, y), (end, floor))
        points = (*first, *last)
    return Line(arrow.tail, arrow.head, points, arrow.style)


def _wire_tracks(panel: Panel) -> tuple[dict[tuple[str, int], int], dict[int, int]]:
    """Return the track of each wire in its gutters, by (gutter, number of the wire), and the tracks above each band."""
    chosen: dict[tuple[str, int], int] = {}
    gutters = {wire.tail_gutter for wire in panel.wires} | {wire.head_gutter for wire in panel.wires}
    for gutter in sorted(gutters):
        spans: dict[Hashable, tuple[float, float]] = {}
        for number, wire in enumerate(panel.wires):
            # a wire runs from its tail to the gap above its head's band, and from there into the band
            if wire.tail_gutter == gutter:
                ends = sorted((wire.tail_band + 0.5, wire.head_band + 0.25))
                spans[number] = ends[0], ends[1]
            elif wire.head_gutter == gutter:
                spans[number] = wire.head_band + 0.2, wire.head_band + 0.6
        for number, track in tracks(spans).items():
            assert isinstance(number, int)
            chosen[gutter, number] = track
    above: dict[int, int] = defaultdict(int)
    for wire in panel.wires:
        above[wire.head_band] += 1
    return chosen, above


def _wire(
    wire: Wire,
    number: int,
    panel: Panel,
    shapes: dict[str, Shape],
    columns: Columns,
    band_tops: list[float],
    wire_tracks: dict[tuple[str, int], int],
) -> Line:
    tail, head = shapes[wire.tail], shapes[wire.head]
    down = columns[wire.tail_gutter][0] + TRACK * wire_tracks[wire.tail_gutter, number]
    into = columns[wire.head_gutter][0] + TRACK * wire_tracks[wire.head_gutter, number]
    order = [each for each, other in enumerate(panel.wires) if other.head_band == wire.head_band].index(number)
    # half above the middle of the first lane, so that wires keep clear of straight arrows
    out_y, in_y = tail.top + BOX_HEIGHT - 3, head.top + BOX_HEIGHT - 3 - TRACK * (order % 6)
    across = band_tops[wire.head_band] - 8 - TRACK * order
    points = (
        (tail.left + tail.width, out_y),
        (down, out_y),
        (down, across),
        (into, across),
        (into, in_y),
        (head.left, in_y),
    )
    return Line(wire.tail, wire.head, points, "across")


def _frame(
    panel: Panel, band: int, place: tuple[float, list[float], float, float], columns: Columns, shapes: dict[str, Shape]
) -> Frame:
    top, lane_tops, lane_height, right = place
    lanes = panel.band_lanes(band)
    inside = [shapes[box.key] for box in panel.boxes.values() if box.band == band]
    strips = [
        replace(strip, top=top + BAND_HEAD - STRIP_HEIGHT - 6)
        for strip in (_strip(key, text, names, columns) for key, text, names in band_strips(panel, band))
    ]
    height = lane_tops[lanes[-1]] + lane_height + LANE_GAP - top
    return Frame(
        key=f"{panel.pool.role}_{rank_key(panel, band)}",
        title=band_title(panel, band),
        left=MARGIN,
        top=top,
        width=right - MARGIN,
        height=height,
        shapes=(*strips, *inside),
        facts=band_facts(panel, band),
    )


def rank_key(panel: Panel, band: int) -> str:
    """Return an identifier of a band, by its ranks."""
    lanes = panel.band_lanes(band)
    return f"g{panel.lanes[lanes[0]].first_rank}_{panel.lanes[lanes[-1]].last_rank}"


def _strip(key: str, text: str, names: list[str], columns: Columns) -> Shape:
    left = columns[names[0]][0]
    right = sum(columns[names[-1]])
    width = max(right - left, width_of([text]))
    return Shape(key, (text,), left, 0, width, STRIP_HEIGHT, "strip", justify="l" if safe_width(text) < width else "n")
