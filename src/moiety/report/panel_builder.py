"""From a pool and its graph to the pool's panel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.graph.op import Collective
from moiety.report.collective_boxes import add_collective
from moiety.report.lane_walk import LaneWalk
from moiety.report.lanes import pool_lanes
from moiety.report.operator_text import op_lines, shapes_into
from moiety.report.panel import GUTTER, Panel
from moiety.report.ports import add_ports
from moiety.report.segments import step_segments

if TYPE_CHECKING:
    from moiety.graph.graph import Graph
    from moiety.plan import Plan, Pool
    from moiety.report.segments import Segment


def build_panel(plan: Plan, pool: Pool, graph: Graph, *, sends_cache: bool, takes_cache: bool) -> Panel:
    """Return the panel of a pool; `sends_cache` and `takes_cache` say on which side of a KV transfer it stands."""
    panel = Panel(plan, pool, graph, pool_lanes(plan, pool, graph), step_segments(graph))
    _add_columns(panel, sends_cache=sends_cache, takes_cache=takes_cache)
    bars = {
        (segment.key, op.name): add_collective(panel, segment, op)
        for segment in panel.segments
        for op in segment.ops
        if isinstance(op.work, Collective)
    }
    ports = add_ports(panel, sends_cache=sends_cache, takes_cache=takes_cache)
    compute_lines = _compute_lines(panel)
    for number in range(len(panel.lanes)):
        LaneWalk(panel, number, bars, ports, compute_lines).walk()
    return panel


def _add_columns(panel: Panel, *, sends_cache: bool, takes_cache: bool) -> None:
    pipelined = bool(panel.graph.boundary)
    columns = panel.columns
    columns += [f"{GUTTER}kv_receive", "kv_receive"] if takes_cache else []
    columns += [f"{GUTTER}receive", "receive"] if pipelined else []
    columns.append("gpu")
    forward = [segment for segment in panel.segments if not segment.is_backward and segment.key != "update"]
    backward = [segment for segment in panel.segments if segment.is_backward]
    for segment in forward:
        columns += _segment_columns(panel, segment)
    columns += ["send", f"{GUTTER}send"] if pipelined else []
    columns += [f"{GUTTER}receive_back", "receive_back"] if pipelined and backward else []
    for segment in backward:
        columns += _segment_columns(panel, segment)
    columns += ["send_back", f"{GUTTER}send_back"] if pipelined and backward else []
    for segment in panel.segments:
        columns += _segment_columns(panel, segment) if segment.key == "update" else []
    columns += ["kv_send", f"{GUTTER}kv_send"] if sends_cache else []


def _segment_columns(panel: Panel, segment: Segment) -> list[str]:
    columns: list[str] = []
    for op in segment.ops:
        crosses = isinstance(op.work, Collective) and any(span.num_nodes > 1 for span in panel.spans_of(op.work.axis))
        columns += [f"{segment.key}/{op.name}{part}" for part in (("", ":net", ":to") if crosses else ("",))]
    return columns


def _compute_lines(panel: Panel) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the text of every compute op; it is the same on every GPU."""
    graph = panel.graph
    hidden = str(graph.embedding[-1].output or "") if graph.embedding else ""
    lines: dict[tuple[str, str], tuple[str, ...]] = {}
    for segment in panel.segments:
        outputs = {op.name: op.output for op in segment.ops}
        incoming = {"embed": f"[{graph.layout.tokens}] token ids", "update": ""}.get(segment.key, hidden)
        for op in segment.ops:
            if not isinstance(op.work, Collective):
                lines[segment.key, op.name] = op_lines(op, shapes_into(op, outputs, incoming))
    return lines
