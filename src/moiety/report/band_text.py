"""The headings of a band: which node, which GPUs, stages, experts and layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.report.expert_text import expert_line, lane_experts
from moiety.report.lanes import number_ranges
from moiety.report.segments import layer_text, layers_of

if TYPE_CHECKING:
    from moiety.report.panel import Panel


def band_title(panel: Panel, band: int) -> str:
    """Return e.g. `Node 3: GPUs 24-31, Experts 12-15` or `Nodes 4-127 as node 3: ...`."""
    nodes, first, last = _nodes_and_ranks(panel, band)
    lanes = [panel.lanes[number] for number in panel.band_lanes(band)]
    name = f"Node {nodes[0]}" if len(nodes) == 1 else f"Nodes {nodes[0]}-{nodes[-1]}"
    if lanes[0].like:
        counted = f"{len(nodes):,} nodes, " if len(nodes) > 1 else ""
        name += f" as {lanes[0].like}: {counted}{last - first + 1:,} GPUs"
    parts = [f"{name}: GPUs {first}-{last}" if first != last else f"{name}: GPU {first}"]
    if len(panel.plan.pools) > 1:
        parts.append(f"{panel.pool.role} pool")
    strategy = panel.pool.strategy
    if strategy.instances > 1:
        inside = [(rank - panel.pool.first_rank) // strategy.gpus_per_instance for rank in (first, last)]
        parts.append(
            f"instance{'s' if inside[0] != inside[1] else ''} {number_ranges(range(inside[0], inside[1] + 1))}"
        )
    if strategy.pp > 1:
        stages = lanes[0].stages
        layers = [layer for stage in stages for layer in panel.graph.stages[stage]]
        stage = f"pipeline stage{'s' if len(stages) > 1 else ''} {number_ranges(stages)}"
        parts.append(f"{stage} ({layer_text(layers)})")
    experts = tuple(expert for lane in lanes for expert in lane_experts(panel.pool, panel.graph.stages, lane))
    parts.append(expert_line(experts, ""))
    return ", ".join(part for part in parts if part)


def band_facts(panel: Panel, band: int) -> tuple[tuple[str, str], ...]:
    """Return nodes, GPUs and experts of a band as attributes."""
    nodes, first, last = _nodes_and_ranks(panel, band)
    lanes = [panel.lanes[number] for number in panel.band_lanes(band)]
    experts = {expert for lane in lanes for expert in lane_experts(panel.pool, panel.graph.stages, lane)}
    return (
        ("nodes", number_ranges(nodes)),
        ("gpus", number_ranges(range(first, last + 1))),
        ("experts", number_ranges(experts, most=len(experts) or 1)),
    )


def band_strips(panel: Panel, band: int) -> list[tuple[str, str, list[str]]]:
    """Return key, text and columns of the heading above each segment that the band runs."""
    lanes = [panel.lanes[number] for number in panel.band_lanes(band)]
    stages = tuple(sorted({stage for lane in lanes for stage in lane.stages}))
    strips: list[tuple[str, str, list[str]]] = []
    for segment in panel.segments:
        if not set(segment.stages) & set(stages):
            continue
        names = [name for name in panel.columns if name.startswith(f"{segment.key}/")]
        text = segment.count_text(layers_of(segment, panel.graph, stages))
        strips.append((f"{segment.key}_title_g{lanes[0].first_rank}", text, names))
    return strips


def _nodes_and_ranks(panel: Panel, band: int) -> tuple[list[int], int, int]:
    numbers = panel.band_lanes(band)
    first, last = panel.lanes[numbers[0]].first_rank, panel.lanes[numbers[-1]].last_rank
    node_of = panel.plan.cluster.node_of
    return list(range(node_of(first), node_of(last) + 1)), first, last
