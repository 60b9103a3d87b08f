"""The summary DAG: one page with the step's main parts, the meshes, the nodes, the links and the key figures."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from moiety.graph.graph import build_graph
from moiety.report.cache_transfer import cache_roles, transfer_lines
from moiety.report.drawing import Drawing, Frame, Line, Shape, safe_width, to_dot, width_of
from moiety.report.heading import LEGEND, page_title
from moiety.report.routing import tracks
from moiety.report.summary_steps import Step, pool_steps
from moiety.report.summary_tables import summary_tables

if TYPE_CHECKING:
    from collections.abc import Hashable

    from moiety.plan import Plan

_GAP = 16.0
_TRACK = 6.0
_LINE = 10.5
_TITLE = 14
_MARGIN = 12.0
_TOP = 74.0


def summary_dot(plan: Plan) -> str:
    """Return the DOT text of the summary DAG; same plan, same bytes."""
    return to_dot(summary_drawing(plan))


def summary_drawing(plan: Plan) -> Drawing:
    """Return the summary: each pool's step from top to bottom, the tables to the right of it."""
    shapes = _head(plan)
    frames: list[Frame] = []
    lines: list[Line] = []
    left, bottom = _MARGIN, _TOP
    steps_of = [pool_steps(plan, pool, build_graph(plan.model, pool, plan.options)) for pool in plan.pools]
    for number, steps in enumerate(steps_of):
        flow = _flow(steps, left, _TOP, f"{plan.pools[number].role} step: {plan.pools[number].strategy.name}")
        frames += flow[0]
        lines += flow[1]
        left, bottom = flow[2] + _GAP, max(bottom, flow[3])
    transfer = _transfer(plan, steps_of, frames, bottom)
    shapes += transfer[0]
    lines += transfer[1]
    bottom = transfer[2]
    for top, table_bottom, right, frame in _tables(plan, left):
        frames.append(frame)
        bottom = max(bottom, table_bottom, top)
        left = max(left, right)
    right = max([left, *(shape.left + shape.width for shape in shapes)])
    return Drawing(
        name=f"{plan.name}_llm_deployment_summary",
        comments=(
            f"Summary deployment DAG of plan {plan.name}: {page_title(plan)}",
            "Every position is in this file: render it with `neato -n2 -Tsvg FILE.dot -o FILE.svg` (or `dot -Tsvg`).",
        ),
        width=right + _MARGIN,
        height=bottom + _MARGIN,
        frames=tuple(frames),
        shapes=tuple(shapes),
        lines=tuple(lines),
        scale=1.5,
    )


def _head(plan: Plan) -> list[Shape]:
    title = f"{plan.name}: {page_title(plan)}"
    shapes = [Shape("title", (title,), _MARGIN, 4, safe_width(title, 18), 26, "text", font_size=18, justify="l")]
    left = _MARGIN
    for style, text in LEGEND[1:]:
        width = width_of([text])
        shapes.append(Shape(f"legend_{style}", (text,), left, 40, width, 16, style))
        left += width + 6
    return shapes


def _flow(steps: tuple[Step, ...], left: float, top: float, title: str) -> tuple[list[Frame], list[Line], float, float]:
    """Return the frames and lines of a pool's step, and how far right and down they reach."""
    width = max(width_of(step.lines) for step in steps) + 12
    box_left = left + 2 * _MARGIN
    placed: dict[str, Shape] = {}
    parts: list[list[Step]] = []
    for step in steps:
        if not parts or parts[-1][0].segment != step.segment:
            parts.append([])
        parts[-1].append(step)
    y = top + 30
    frames: list[Frame] = []
    routes, num_tracks = _skips(steps)
    right = box_left + width + _TRACK * (num_tracks + 2)
    for part in parts:
        frame_top = y
        y += 24
        for step in part:
            height = _LINE * len(step.lines) + 8
            placed[step.key] = Shape(step.key, step.lines, box_left, y, width, height, step.style, step.facts)
            y += height + _GAP
        inside = tuple(placed[step.key] for step in part)
        frames.append(
            Frame(
                part[0].segment, part[0].title, left + 8, frame_top, right - left - 8, y - frame_top - 4, inside, (), 10
            )
        )
        y += 8
    outer = Frame(f"{steps[0].key}_pool", title, left, top, right - left + 8, y - top, (), (), _TITLE, "#ffffff")
    lines = [_link(tail, head, placed, routes, box_left + width) for tail, head in _edges(steps)]
    return [outer, *frames], lines, right + 8, y


def _edges(steps: tuple[Step, ...]) -> list[tuple[str, str]]:
    return [(source, step.key) for step in steps for source in step.sources]


def _skips(steps: tuple[Step, ...]) -> tuple[dict[Hashable, int], int]:
    """Return the track of each step whose output also goes further than to the next step, and the number of tracks."""
    place = {step.key: number for number, step in enumerate(steps)}
    spans: dict[Hashable, tuple[float, float]] = {}
    for tail, head in _edges(steps):
        if place[head] > place[tail] + 1:
            spans[tail] = place[tail] + 0.5, max(place[head] + 0.4, spans.get(tail, (0, 0))[1])
    chosen = tracks(spans)
    return chosen, max([0, *(track + 1 for track in chosen.values())])


def _link(tail: str, head: str, placed: dict[str, Shape], routes: dict[Hashable, int], right: float) -> Line:
    first, last = placed[tail], placed[head]
    keys = list(placed)
    if (tail, head) in pairwise(keys):
        x = first.left + 0.92 * first.width  # to the right of the frames' titles
        return Line(tail, head, ((x, first.top + first.height), (x, last.top)))
    x = right + _TRACK * (routes[tail] + 1)
    start, end = first.top + first.height - 6, last.top + 6
    return Line(tail, head, ((first.left + first.width, start), (x, start), (x, end), (last.left + last.width, end)))


def _transfer(
    plan: Plan, steps_of: list[tuple[Step, ...]], frames: list[Frame], bottom: float
) -> tuple[list[Shape], list[Line], float]:
    """Return the KV transfer below the pools, from the prefill pools' last layers to the decode pools' first."""
    sending, taking = cache_roles(plan)
    if not sending:
        return [], [], bottom
    text = transfer_lines(plan)
    height = _LINE * len(text) + 8
    shapes = {shape.key: shape for frame in frames for shape in frame.shapes}
    pools = [frame for frame in frames if not frame.shapes]
    width = width_of(text)
    middle = (pools[sending[0]].left + pools[sending[0]].width + pools[taking[0]].left) / 2
    box = Shape("kv_transfer", text, middle - width / 2, bottom + _GAP, width, height, "across")
    lines: list[Line] = []
    for number in sending:
        tail = [shapes[step.key] for step in steps_of[number] if step.is_layer][-1]
        y, x, into = tail.top + tail.height / 2, pools[number].left + 4, box.top + height / 2
        lines.append(Line(tail.key, box.key, ((tail.left, y), (x, y), (x, into), (box.left, into)), "across"))
    for number in taking:
        reading = [shapes[step.key] for step in steps_of[number] if step.reads_cache]
        for head in reading or [shapes[steps_of[number][0].key]]:
            y, x, out = head.top + head.height / 2, pools[number].left + 4, box.top + height - 6
            # below the box and around it, where it lies to the right of the pool's edge
            points = (
                (box.left + box.width, out),
                (box.left + box.width + 8, out),
                (box.left + box.width + 8, box.top - 6),
            )
            lines.append(Line(box.key, head.key, (*points, (x, box.top - 6), (x, y), (head.left, y)), "across"))
    return [box], lines, box.top + height


def _tables(plan: Plan, left: float) -> list[tuple[float, float, float, Frame]]:
    """Return (top, bottom, right edge, frame) of each table, one below the other."""
    tables = summary_tables(plan)
    width = max(max(safe_width(line) for line in lines) for _, lines in tables)
    width = max([width, *(safe_width(title, _TITLE) for title, _ in tables)]) + 8
    found: list[tuple[float, float, float, Frame]] = []
    top = _TOP
    for number, (title, lines) in enumerate(tables):
        height = _LINE * len(lines) + 6
        text = Shape(f"table{number}", lines, left + 8, top + 24, width, height, "text", justify="l")
        frame = Frame(f"table{number}", title, left, top, width + 12, height + 32, (text,), (), _TITLE, "#f7f8fa")
        bottom = top + height + 32
        found.append((top, bottom, left + width + 12, frame))
        top = bottom + 10
    return found
