"""The tables of the summary: model, meshes, what lies on which node, links, key figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.report.expert_text import expert_line, lane_experts
from moiety.report.heading import billions, node_count
from moiety.report.lanes import Lane, number_ranges, stages_of
from moiety.report.operator_text import tier_text
from moiety.report.segments import layer_text
from moiety.strategy.stages import held_layers
from moiety.units import format_duration, format_si

if TYPE_CHECKING:
    from moiety.plan import Plan, Pool, Projection
    from moiety.strategy.strategy import Axis

Table = tuple[str, tuple[str, ...]]
_NODES_SHOWN = 18
_AXES: tuple[tuple[Axis, str], ...] = (
    ("tp", "tensor parallel"),
    ("attn_dp", "attention data parallel"),
    ("ep", "expert parallel"),
    ("etp", "expert tensor parallel"),
    ("pp", "pipeline stages"),
    ("instance", "instances"),
)
_SHARDED: tuple[Axis, str] = "dp", "fully sharded data parallel"


def summary_tables(plan: Plan) -> list[Table]:
    """Return (title, lines) of each table."""
    model, cluster = plan.model, plan.cluster
    size = f"{model.name}: {model.num_layers} layers, hidden size {model.hidden_size:,}"
    parameters = (
        f"{billions(model.num_parameters)} parameters, {billions(model.num_active_parameters)} active for a token"
    )
    tables: list[Table] = [("Model", (size, parameters, *_expert_facts(plan)))]
    for pool in plan.pools:
        where = f" of the {pool.role} pool" if len(plan.pools) > 1 else ""
        sharded = plan.options.fully_sharded and pool.strategy.instances > 1
        tables.append((f"Mesh{where}: {pool.strategy.name}", _mesh(pool, fully_sharded=sharded)))
        tables.append((f"Nodes{where}", _nodes(plan, pool)))
    links = [
        f"{tier_text(cluster, number)} one way among {tier.num_gpus:,} GPUs, {format_duration(tier.latency_s)}"
        for number, tier in enumerate(cluster.tiers)
    ]
    size = node_count(cluster)
    tables.append((f"Cluster {cluster.name}", (f"{size}, {cluster.device.name}", *links)))
    if plan.projection is not None:
        tables.append(("Key figures", _figures(plan.projection)))
    return tables


def _expert_facts(plan: Plan) -> tuple[str, ...]:
    moe = plan.model.moe
    if moe is None:
        return ("no experts",)
    shared = f"shared experts of width {moe.shared_intermediate_size:,}" if moe.shared_intermediate_size else ""
    experts = f"{moe.num_experts} experts of width {moe.expert_intermediate_size:,}, {moe.top_k} for a token"
    return tuple(line for line in (f"{plan.model.num_moe_layers} MoE layers: {experts}", shared) if line)


def _mesh(pool: Pool, *, fully_sharded: bool) -> tuple[str, ...]:
    lines: list[str] = []
    for axis, name in (*_AXES, *((_SHARDED,) if fully_sharded else ())):
        groups = pool.strategy.groups(axis, pool.first_rank)
        example = number_ranges(groups[0], most=4)
        if len(groups[0]) > 1:
            lines.append(f"{name} ({axis}) {len(groups[0]):,}: {group_count(groups)} GPUs {example}")
    return tuple(lines) or ("every GPU by itself",)


def group_count(groups: tuple[tuple[int, ...], ...]) -> str:
    """Return e.g. `64 groups, first:`, which the members of the first follow."""
    return "1 group:" if len(groups) == 1 else f"{len(groups):,} groups, first:"


def _nodes(plan: Plan, pool: Pool) -> tuple[str, ...]:
    """Return a line for each node, the middle left out where there are many."""
    node = plan.cluster.gpus_per_node
    end = pool.first_rank + pool.num_gpus
    first, last = plan.cluster.node_of(pool.first_rank), plan.cluster.node_of(end - 1)
    numbers = list(range(first, last + 1))
    lines = [_node_line(plan, pool, number, max(number * node, pool.first_rank), end) for number in _shown(numbers)]
    if len(numbers) > _NODES_SHOWN:
        lines.insert(-1, f"... {len(numbers) - _NODES_SHOWN:,} nodes in between")
    return tuple(lines)


def _shown(numbers: list[int]) -> list[int]:
    return numbers if len(numbers) <= _NODES_SHOWN else [*numbers[: _NODES_SHOWN - 1], numbers[-1]]


def _node_line(plan: Plan, pool: Pool, number: int, first: int, end: int) -> str:
    last = min((number + 1) * plan.cluster.gpus_per_node, end) - 1
    lane = Lane(first, last - first + 1, stages_of(pool, first, last - first + 1), 0)
    layers = held_layers(plan.model.num_layers, pool.strategy.pp, plan.options.virtual_stages)
    parts = [f"node {number}: {'GPUs' if last > first else 'GPU'} {number_ranges(range(first, last + 1))}"]
    if pool.strategy.instances > 1:
        inside = [(rank - pool.first_rank) // pool.strategy.gpus_per_instance for rank in (first, last)]
        parts.append(f"instance {number_ranges(range(inside[0], inside[1] + 1))}")
    if pool.strategy.pp > 1:
        held = sorted(layer for stage in lane.stages for layer in layers[stage])
        parts.append(f"stage {number_ranges(lane.stages)} ({layer_text(held)})")
    parts.append(expert_line(lane_experts(pool, layers, lane), "").lower())
    return ", ".join(part for part in parts if part)


def _figures(projection: Projection) -> tuple[str, ...]:
    whole = format_si(projection.throughput_tokens_per_s, "tokens/s")
    lines = [
        f"throughput {whole}, {format_si(projection.throughput_tokens_per_s_per_gpu, 'tokens/s')} a GPU",
        f"step {format_duration(projection.step_s)}",
    ]
    if projection.ttft_s is not None:
        lines.append(f"time to first token {format_duration(projection.ttft_s)}")
    if projection.tpot_s is not None:
        lines.append(f"time per output token {format_duration(projection.tpot_s)}")
    power = format_si(projection.power_w_per_gpu, "W")
    lines += [
        f"model FLOPs utilisation {projection.model_flops_utilization:.1%}",
        f"exposed communication {projection.exposed_communication_fraction:.1%} of the step",
        f"communication hidden behind computation {projection.overlap_fraction:.1%}",
        f"memory {format_si(sum(projection.memory_bytes_per_gpu.values()), 'B')} a GPU",
        f"power {power} a GPU, {projection.tokens_per_joule:.3g} tokens a joule",
    ]
    return tuple(lines)
