"""The plan against the cluster: GPUs, groups, rules of division, number formats."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention, LinearAttention
from moiety.model.feed_forward import DenseFeedForward, MoeFeedForward
from moiety.verify.findings import Finding, judged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from moiety.dtypes import Dtype
    from moiety.model.attention import Attention
    from moiety.model.model import Block
    from moiety.plan import Pool
    from moiety.strategy.strategy import Axis, Strategy
    from moiety.verify.inspection import Inspection


def gpu_count(inspection: Inspection) -> Iterator[Finding]:
    """Check that every rank belongs to one pool, and the cluster has them all."""
    plan = inspection.plan
    taken: list[int] = []
    for pool in plan.pools:
        strategy = pool.strategy
        size = strategy.tp * strategy.attn_dp * strategy.pp * strategy.instances
        taken += range(pool.first_rank, pool.first_rank + size)
    there = plan.cluster.num_nodes * plan.cluster.gpus_per_node
    whole = sorted(taken) == list(range(len(taken)))
    yield judged(
        "gpu-count",
        "cluster",
        f"the pools use {len(taken)} GPUs ({'each rank once' if whole else 'ranks are missing or taken twice'}), "
        f"the cluster has {plan.cluster.num_nodes} x {plan.cluster.gpus_per_node} = {there}",
        holds=whole and len(taken) <= there,
        expected=float(there),
        actual=float(len(taken)),
    )


def pool_roles(inspection: Inspection) -> Iterator[Finding]:
    """Check that one pool does the workload's work, or a prefill pool and a decode pool share it."""
    plan = inspection.plan
    roles = [pool.role for pool in plan.pools]
    allowed = [[plan.workload.kind]] + ([["prefill", "decode"]] if plan.workload.kind == "mixed" else [])
    yield judged(
        "pool-roles",
        "the plan",
        f"pools for {' and '.join(roles)}; the workload {plan.workload.name} is {plan.workload.kind}",
        holds=roles in allowed,
    )


_SHARED: dict[Axis, Callable[[int, int, int, int, int], tuple[int, ...]]] = {
    # what the ranks of a group have in common: (rank, tp, etp, GPUs of a stage, GPUs of an instance) -> coordinates
    "tp": lambda r, tp, _etp, _stage, _inst: (r // tp,),
    "attn_dp": lambda r, tp, _etp, stage, _inst: (r // stage, r % tp),
    "ep": lambda r, _tp, etp, stage, _inst: (r // stage, r % etp),
    "etp": lambda r, _tp, etp, _stage, _inst: (r // etp,),
    "stage": lambda r, _tp, _etp, stage, _inst: (r // stage,),
    "pp": lambda r, _tp, _etp, stage, inst: (r // inst, r % stage),
    "instance": lambda r, _tp, _etp, _stage, inst: (r % inst,),
    "dp": lambda r, tp, _etp, stage, inst: (r % inst // stage, r % tp),
}


def groups_tile_ranks(inspection: Inspection) -> Iterator[Finding]:
    """Check that the groups of every axis are the ranks that share all other coordinates, and hold every rank once."""
    for pool in inspection.plan.pools:
        strategy = pool.strategy
        stage = strategy.tp * strategy.attn_dp
        instance = stage * strategy.pp
        wrong: list[str] = []
        fully_sharded = inspection.plan.options.fully_sharded
        told = len(_SHARED) - (not fully_sharded)
        for axis, shared in _SHARED.items():
            if axis == "dp" and not fully_sharded:
                continue
            expected: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
            for rank in range(instance * strategy.instances):
                key = shared(rank, strategy.tp, strategy.etp, stage, instance)
                expected[key].append(rank + pool.first_rank)
            if sorted(strategy.groups(axis, pool.first_rank)) != sorted(tuple(ranks) for ranks in expected.values()):
                wrong.append(axis)
        if not _context_groups_nest(strategy, pool.first_rank):
            wrong.append("cp")
        yield judged(
            "groups-tile-ranks",
            inspection.name_of(pool),
            f"groups of {told} axes hold each of {instance * strategy.instances} ranks once"
            if not wrong
            else f"groups of {', '.join(wrong)} do not tile the ranks",
            holds=not wrong,
        )


def _context_groups_nest(strategy: Strategy, first_rank: int) -> bool:
    """Return whether context-parallel groups hold every rank once, `cp` of equal place in stage and tensor group."""
    stage = strategy.tp * strategy.attn_dp
    groups = strategy.groups("cp", first_rank)
    ranks = sorted(rank - first_rank for group in groups for rank in group)
    alike = all(
        len(group) == strategy.cp
        and len({((rank - first_rank) // stage % strategy.pp, (rank - first_rank) % strategy.tp) for rank in group})
        == 1
        for group in groups
    )
    return alike and ranks == list(range(stage * strategy.pp * strategy.instances))


def division_rules(inspection: Inspection) -> Iterator[Finding]:
    """Check that heads, experts, widths and layers divide over the degrees."""
    for pool in inspection.plan.pools:
        broken = list(_broken(inspection, pool))
        yield judged(
            "division-rules",
            inspection.name_of(pool),
            "; ".join(broken) if broken else "heads, KV heads, experts, widths and layers divide over the degrees",
            holds=not broken,
        )


def _broken(inspection: Inspection, pool: Pool) -> Iterator[str]:
    """Yield every rule of division that the pool's strategy breaks."""
    model, strategy = inspection.plan.model, pool.strategy
    if strategy.pp > model.num_layers:
        yield f"{strategy.pp} stages for {model.num_layers} layers"
    if strategy.tp * strategy.attn_dp != strategy.ep * strategy.etp:
        yield "the attention mesh and the expert mesh differ in size"
    parts = inspection.plan.options.virtual_stages
    if parts > 1 and (pool.role != "training" or strategy.pp == 1 or strategy.pp * parts > model.num_layers):
        yield f"{parts} parts in turns of {strategy.pp} stages of {model.num_layers} layers for {pool.role}"
    if parts > 1 and pool.schedule.num_microbatches % strategy.pp:
        yield f"{pool.schedule.num_microbatches} micro-batches in groups of {strategy.pp} stages"
    if inspection.plan.options.fully_sharded and pool.role != "training":
        yield "fully sharded parameters outside of training"
    if strategy.cp > 1 and pool.role != "training":
        yield f"context parallelism {strategy.cp} outside of training"
    if strategy.cp > 1 and pool.schedule.prompt_tokens % (2 * strategy.cp):
        yield f"sequences of {pool.schedule.prompt_tokens} tokens over {2 * strategy.cp} halves of cp {strategy.cp}"
    if max(strategy.tp, strategy.etp) % min(strategy.tp, strategy.etp):
        yield f"tp {strategy.tp} and etp {strategy.etp} do not nest"
    for block in model.blocks:
        yield from _broken_by_block(block, strategy, inspection.plan.options.redundant_experts)


def _broken_by_block(block: Block, strategy: Strategy, redundant_experts: int) -> Iterator[str]:
    if block.attention is not None:
        yield from _broken_by_attention(block.attention, strategy)
    part = block.feed_forward
    if part is None:
        return
    dense = part.intermediate_size if isinstance(part, DenseFeedForward) else part.shared_intermediate_size
    if dense % strategy.tp:
        yield f"width {dense} over tp {strategy.tp}"
    if isinstance(part, MoeFeedForward):
        slots = part.num_experts + redundant_experts
        if slots % strategy.ep:
            yield f"{slots} expert slots over ep {strategy.ep}"
        if part.expert_intermediate_size % strategy.etp:
            yield f"expert width {part.expert_intermediate_size} over etp {strategy.etp}"


def _broken_by_attention(attention: Attention, strategy: Strategy) -> Iterator[str]:
    heads = attention.num_value_heads if isinstance(attention, LinearAttention) else attention.num_heads
    if heads % strategy.tp:
        yield f"{heads} heads over tp {strategy.tp}"
    if isinstance(attention, GroupedQueryAttention):
        few, many = sorted((attention.num_kv_heads, strategy.tp))
        if many % few:
            yield f"{attention.num_kv_heads} KV heads over tp {strategy.tp}"
    if isinstance(attention, LinearAttention):
        few, many = sorted((attention.num_key_heads, strategy.tp))
        if many % few:
            yield f"{attention.num_key_heads} key heads over tp {strategy.tp}"


def module_division(inspection: Inspection) -> Iterator[Finding]:
    """Check that expert slots x expert TP, spread over the GPUs of a stage, come out whole."""
    plan = inspection.plan
    moe = plan.model.moe
    if moe is None:
        return
    for pool in plan.pools:
        strategy = pool.strategy
        slots = moe.num_experts + plan.options.redundant_experts
        modules, gpus = slots * strategy.etp, strategy.tp * strategy.attn_dp
        yield judged(
            "module-division",
            inspection.name_of(pool),
            f"{slots} expert slots x {strategy.etp} partitions = {modules} modules on {gpus} GPUs: "
            f"{modules / gpus:g} each",
            holds=modules % gpus == 0,
            expected=float(gpus),
            actual=float(modules),
        )


def links(inspection: Inspection) -> Iterator[Finding]:
    """Check that every tier of links carries something, and reaches as far as the cluster."""
    cluster = inspection.plan.cluster
    shown: list[str] = []
    for tier in cluster.tiers:
        share = (
            tier.bandwidth_bytes_per_s / (cluster.gpus_per_node if tier.per == "node" else 1) / tier.oversubscription
        )
        shown.append(f"{tier.name} {share / 1e9:g} GB/s each way per GPU over {tier.num_gpus} GPUs")
    positive = all(tier.bandwidth_bytes_per_s > 0 for tier in cluster.tiers)
    reaches = cluster.tiers[-1].num_gpus == cluster.num_nodes * cluster.gpus_per_node
    yield judged("links", "cluster", "; ".join(shown), holds=positive and reaches)


def number_formats(inspection: Inspection) -> Iterator[Finding]:
    """Check that the device computes in the plan's formats; a wider one costs speed."""
    device, dtypes = inspection.plan.cluster.device, inspection.plan.options.dtypes
    formats: dict[str, Dtype] = {
        "dense weights": dtypes.weights,
        "experts": dtypes.experts,
        "activations": dtypes.activations,
    }
    for what, dtype in formats.items():
        runs_in = device.compute_dtype(dtype)
        same = dtype in device.peak_flops_per_s
        yield judged(
            "number-formats",
            what,
            f"{dtype} {'is a format of' if same else f'is computed in {runs_in} by'} {device.name}, "
            f"{device.peak_flops_per_s[runs_in] / 1e12:g} TFLOPS",
            holds=same,
            otherwise="warning",
            expected=dtype,
            actual=runs_in,
        )
