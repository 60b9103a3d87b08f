"""Steps: a pool's ops gathered into the parts that a summary shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.graph.op import AttentionCore, Collective, Gemm, MemoryPass
from moiety.report.operator_text import exchange_rule, shapes_into, tier_text
from moiety.report.segments import step_segments
from moiety.units import format_si

if TYPE_CHECKING:
    from moiety.graph.graph import Graph
    from moiety.graph.op import Op
    from moiety.plan import Plan, Pool
    from moiety.report.segments import Segment


@dataclass(frozen=True, slots=True)
class Step:
    """Compute ops that follow each other, or one communication, as a box of the summary."""

    key: str
    segment: str
    """Key of the frame it belongs to."""
    title: str
    """Title of that frame."""
    lines: tuple[str, ...]
    style: str
    sources: tuple[str, ...]
    """Keys of the steps whose output it reads."""
    facts: tuple[tuple[str, str], ...]
    is_layer: bool
    reads_cache: bool


def pool_steps(plan: Plan, pool: Pool, graph: Graph) -> tuple[Step, ...]:
    """Return the steps of a pool from the input to the output, each after the steps it reads from."""
    prefix = f"p{pool.first_rank}"
    first = Step(
        key=f"{prefix}_input",
        segment=f"{prefix}_in",
        title="input",
        lines=("token ids", f"[{graph.layout.tokens}] for each of {pool.strategy.attn_dp:,} attention groups"),
        style="memory",
        sources=(),
        facts=(),
        is_layer=False,
        reads_cache=False,
    )
    steps = [first]
    flow: tuple[str, ...] = (first.key,)
    loose: list[str] = []
    for segment in step_segments(graph):
        if segment.is_backward is False and segment.key == "update":
            flow = (*flow, *loose)
        gathered, place = _segment_steps(plan, pool, graph, segment, prefix, flow)
        steps += gathered
        flow = tuple(dict.fromkeys(place[name] for name in segment.results))
        loose += [place[name] for name in segment.loose_ends]
        last_layer = segment.layers and graph.boundary and not segment.is_backward
        if last_layer and segment.layers[-1] == graph.model.num_layers - 1:
            steps.append(_boundary_step(plan, pool, graph, prefix, flow))
            flow = (steps[-1].key,)
    last = Step(
        key=f"{prefix}_output",
        segment=f"{prefix}_out",
        title="output",
        lines=("updated parameters" if graph.update else "next token of each sequence",),
        style="memory",
        sources=flow,
        facts=(),
        is_layer=False,
        reads_cache=False,
    )
    return (*steps, last)


def _segment_steps(
    plan: Plan, pool: Pool, graph: Graph, segment: Segment, prefix: str, flow: tuple[str, ...]
) -> tuple[list[Step], dict[str, str]]:
    """Return the steps of a segment and the key of the step that each op is in."""
    steps: list[Step] = []
    place: dict[str, str] = {}
    every = {op.name: op for op in segment.ops}
    for ops in _grouped(segment.ops):
        key = f"{prefix}_{segment.key}_{ops[0].name}"
        place |= dict.fromkeys((op.name for op in ops), key)
        sources: list[str] = []
        for op in ops:
            for name in op.inputs or (() if op.prefetch else ("input",)):
                sources += flow if name == "input" else [place[name]]
        if isinstance(ops[0].work, Collective):
            lines = _collective_lines(plan, pool, ops[0])
        else:
            lines = _compute_lines(pool, ops, every, graph, segment.key)
        steps.append(
            Step(
                key=key,
                segment=f"{prefix}_{segment.key}",
                title=segment.count_text(segment.layers),
                lines=lines,
                style=_style(plan, pool, ops),
                sources=tuple(dict.fromkeys(source for source in sources if source != key)),
                facts=(("ops", " ".join(op.name for op in ops)), ("segment", segment.key)),
                is_layer=bool(segment.layers),
                reads_cache=any(isinstance(op.work, AttentionCore) and op.work.phase == "decode" for op in ops),
            )
        )
    return steps, place


def _grouped(ops: tuple[Op, ...]) -> list[tuple[Op, ...]]:
    """Return the ops of each step: neighbours of one kind, up to where the segment's input is added again."""
    groups: list[list[Op]] = []
    for op in ops:
        joins = "input" in op.inputs and len(op.inputs) > 1 and bool(groups) and not groups[-1][-1].prefetch
        if not groups or joins or _kind(groups[-1][-1]) != _kind(op):
            groups.append([])
        groups[-1].append(op)
    return [tuple(group) for group in groups]


def _kind(op: Op) -> str:
    """Return what consecutive ops must share to be one step: a communication is always a step of its own."""
    if isinstance(op.work, Collective):
        return op.name
    return "experts" if isinstance(op.work, (Gemm, MemoryPass)) and op.work.experts else "compute"


def _style(plan: Plan, pool: Pool, ops: tuple[Op, ...]) -> str:
    work = ops[0].work
    if isinstance(work, Collective):
        return "across" if _widest(plan, pool, work)[1] else "inside"
    if any(isinstance(op.work, AttentionCore) for op in ops):
        return "attention"
    if _kind(ops[0]) == "experts":
        return "expert"
    return "product" if any(isinstance(op.work, Gemm) for op in ops) else "memory"


def _widest(plan: Plan, pool: Pool, work: Collective) -> tuple[int, bool]:
    """Return the outermost tier that a group of the collective's axis needs, and whether it leaves its node."""
    cluster = plan.cluster
    groups = pool.strategy.groups(work.axis, pool.first_rank)
    tier = max(cluster.tier_of_group((group[0], group[-1])) for group in groups)
    return tier, any(cluster.node_of(group[0]) != cluster.node_of(group[-1]) for group in groups)


def _compute_lines(
    pool: Pool, ops: tuple[Op, ...], every: dict[str, Op], graph: Graph, segment: str
) -> tuple[str, ...]:
    names = [op.name for op in ops]
    title = (
        "experts"
        if _kind(ops[0]) == "experts"
        else "attention"
        if _has_core(ops)
        else names[0]
        if len(names) == 1
        else ""
    )
    lines = [title] if title else []
    if names != [title]:
        lines += [", ".join(names[at : at + 4]) for at in range(0, len(names), 4)]
    outputs = {name: op.output for name, op in every.items()}
    hidden = str(graph.embedding[-1].output or "")
    outside = {name: None if name in names else output for name, output in outputs.items()}
    given = [shape for op in ops for shape in shapes_into(op, outside, "" if segment == "update" else hidden)]
    left = str(ops[-1].output or "")
    lines.append(f"{' + '.join(dict.fromkeys(filter(None, given)))} -> {left}" if left else "")
    weights = [str(weight) for op in ops for weight in op.weights]
    lines += [f"weights {' + '.join(weights[at : at + 3])}" for at in range(0, len(weights), 3)]
    flops = sum(op.flops for op in ops)
    lines.append(f"{format_si(flops, 'FLOP')} a GPU and micro-batch" if flops else "")
    if _kind(ops[0]) == "experts" and pool.placement is not None:
        placement = pool.placement
        over = f", each over {placement.expert_tp} GPUs" if placement.expert_tp > 1 else ""
        ranks = f"{placement.slots_per_rank} on each of {placement.num_expert_ranks:,} ranks"
        lines.append(f"{placement.num_logical_experts} experts: {ranks}{over}")
    return tuple(line for line in lines if line)


def _has_core(ops: tuple[Op, ...]) -> bool:
    return any(isinstance(op.work, AttentionCore) for op in ops)


def _collective_lines(plan: Plan, pool: Pool, op: Op) -> tuple[str, ...]:
    assert isinstance(op.work, Collective)
    groups = pool.strategy.groups(op.work.axis, pool.first_rank)
    tier, _ = _widest(plan, pool, op.work)
    counted = f"{len(groups):,} group{'s' * (len(groups) > 1)} of {len(groups[0]):,} GPUs (axis {op.work.axis})"
    shape = f", {op.output} a GPU" if op.output else ""
    return op.name, f"{exchange_rule(op.work)}{shape}", counted, tier_text(plan.cluster, tier)


def _boundary_step(plan: Plan, pool: Pool, graph: Graph, prefix: str, flow: tuple[str, ...]) -> Step:
    """Return the step in which each stage sends its output to the next one."""
    op = graph.boundary[0]
    step = pool.strategy.gpus_per_stage
    node_of = plan.cluster.node_of
    pairs = range(pool.first_rank, pool.first_rank + pool.strategy.gpus_per_instance - step)
    crosses = any(node_of(rank) != node_of(rank + step) for rank in pairs)
    tier = max((plan.cluster.tier_between(rank, rank + step) for rank in pairs), default=0)
    return Step(
        key=f"{prefix}_boundary",
        segment=f"{prefix}_boundary",
        title="between pipeline stages",
        lines=(op.name, f"{pool.strategy.pp} stages, {op.output} a GPU", tier_text(plan.cluster, tier)),
        style="across" if crosses else "inside",
        sources=flow,
        facts=(("ops", op.name), ("segment", "boundary")),
        is_layer=False,
        reads_cache=False,
    )
