"""The boxes of a collective: one bar over its group, or hubs in each node and the network between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.graph.op import Collective
from moiety.report.operator_text import exchange_rule, tier_text
from moiety.report.panel import Box, rank_text

if TYPE_CHECKING:
    from moiety.graph.op import Op
    from moiety.report.panel import Panel
    from moiety.report.segments import Segment
    from moiety.report.spans import Span


def add_collective(panel: Panel, segment: Segment, op: Op) -> dict[int, tuple[str, str]]:
    """Add the boxes of a collective; return for each lane where data enters and where it leaves."""
    assert isinstance(op.work, Collective)
    ends: dict[int, tuple[str, str]] = {}
    for span in panel.spans_of(op.work.axis):
        lanes = [
            number
            for number in range(span.first_lane, span.last_lane + 1)
            if set(panel.lanes[number].stages) & set(segment.stages)
        ]
        if not lanes:
            continue
        if span.num_nodes > 1:
            ends |= _add_network(panel, segment, op, span, lanes)
            continue
        text = tier_text(panel.plan.cluster, span.tier)
        lines = (op.name, span.members, str(op.output or exchange_rule(op.work)), text)
        key = _add_bar(panel, segment, op, lanes, lines, "inside")
        ends |= dict.fromkeys(lanes, (key, key))
    return ends


def _add_network(panel: Panel, segment: Segment, op: Op, span: Span, lanes: list[int]) -> dict[int, tuple[str, str]]:
    """Add a collective that leaves the node: a hub for each node's part on either side, the network between them."""
    assert isinstance(op.work, Collective)
    cluster = panel.plan.cluster
    others = f"{span.num_nodes:,} nodes, all pairs"
    lines = (f"{op.name}: network", span.members, others, tier_text(cluster, span.tier))
    network = _add_bar(panel, segment, op, lanes, lines, "across", ":net")
    ends: dict[int, tuple[str, str]] = {}
    for band in dict.fromkeys(panel.lanes[number].band for number in lanes):
        inside = [number for number in lanes if panel.lanes[number].band == band]
        ranks = f"GPUs {rank_text([panel.lanes[number] for number in inside])}"
        local = tier_text(cluster, 0)
        out = f"{op.name}: send", ranks, exchange_rule(op.work), local
        hub = _add_bar(panel, segment, op, inside, out, "inside")
        arrived = f"{op.name}: receive", ranks, f"out {op.output}" if op.output else "", local
        spread = _add_bar(panel, segment, op, inside, arrived, "inside", ":to")
        if ends:
            _add_note(
                panel,
                key=f"note_{spread}",
                lines=(lines[0], lines[-1]),
                column=panel.boxes[network].column,
                lane=inside[0],
            )
        middle = inside[(len(inside) - 1) // 2]
        panel.connect([hub], network, middle, "across")
        panel.connect([network], spread, middle, "across")
        ends |= dict.fromkeys(inside, (hub, spread))
    return ends


def _add_note(panel: Panel, *, key: str, lines: tuple[str, ...], column: str, lane: int) -> None:
    """Say what a network is once more where it passes a further band."""
    panel.add(Box(key, lines, "text", column, lane, lane, (), band=panel.lanes[lane].band))


def _add_bar(
    panel: Panel, segment: Segment, op: Op, lanes: list[int], lines: tuple[str, ...], style: str, part: str = ""
) -> str:
    first, last = panel.lanes[lanes[0]], panel.lanes[lanes[-1]]
    suffix = {"": "", ":net": "_network", ":to": "_receive"}[part]
    covered = rank_text([panel.lanes[number] for number in lanes])
    facts = (("op", op.name), ("segment", segment.key), ("gpus", covered))
    return panel.add(
        Box(
            key=f"{segment.key}_{op.name}{suffix}_g{first.first_rank}_{last.last_rank}",
            lines=tuple(line for line in lines if line),
            style=style,
            column=f"{segment.key}/{op.name}{part}",
            first_lane=lanes[0],
            last_lane=lanes[-1],
            facts=(*facts, ("part", suffix[1:])) if suffix else facts,
            is_bar=True,
            band=first.band if first.band == last.band else None,
        )
    )
