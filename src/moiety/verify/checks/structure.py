"""Placement and schedule: every expert lives, copies are apart, and the steps do the workload's work."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from moiety.verify.findings import Finding, judged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.placement.placement import Placement
    from moiety.plan import Pool
    from moiety.verify.inspection import Inspection
_MOST_MICROBATCHES = 64
"""Micro-batches a stage of a serving step beyond which nobody divides it: more only add start-up times."""


def placement_shape(inspection: Inspection) -> Iterator[Finding]:
    """Check that the map has a row for each MoE layer, a slot for each expert and copy, and the strategy's mesh."""
    plan = inspection.plan
    moe_layers = [i for i, kind in enumerate(plan.model.layer_blocks) if plan.model.blocks[kind].moe is not None]
    for pool in plan.pools:
        subject, placement, moe = inspection.name_of(pool), pool.placement, plan.model.moe
        if moe is None or placement is None:
            yield judged(
                "placement-shape",
                subject,
                "no experts to place" if moe is None else "the experts have no placement",
                holds=(moe is None) == (placement is None),
            )
            continue
        slots = moe.num_experts + plan.options.redundant_experts
        stage = pool.strategy.tp * pool.strategy.attn_dp
        wrong: list[str] = []
        if list(placement.layers) != moe_layers:
            wrong.append(f"rows for {len(placement.layers)} layers, the model has {len(moe_layers)} MoE layers")
        if {len(row) for row in placement.physical_to_logical_map} != {slots}:
            wrong.append(f"rows that are not {moe.num_experts} + {plan.options.redundant_experts} slots wide")
        if placement.num_logical_experts != moe.num_experts:
            wrong.append(f"{placement.num_logical_experts} experts, the model has {moe.num_experts}")
        if placement.num_gpus != stage or placement.expert_tp != pool.strategy.etp:
            wrong.append(
                f"{placement.num_gpus} GPUs by expert TP {placement.expert_tp}, the stage has {stage} by "
                f"{pool.strategy.etp}"
            )
        if placement.method != plan.options.placement and pool.strategy.ep > 1:
            wrong.append(f"placed by {placement.method}, the plan's method is {plan.options.placement}")
        shares = plan.expert_shares
        if shares is not None and [len(row) for row in shares] != [moe.num_experts] * len(moe_layers):
            wrong.append("measured shares of another number of layers or experts")
        node = plan.cluster.gpus_per_node
        nodes = stage // node if stage > node and stage % node == 0 else 1
        if placement.num_nodes != nodes:
            wrong.append(f"{placement.num_nodes} nodes, the stage has {nodes}")
        yield judged(
            "placement-shape",
            subject,
            "; ".join(wrong) if wrong else f"{len(moe_layers)} MoE layers x {slots} slots on {stage} GPUs",
            holds=not wrong,
            expected=float(slots),
            actual=float(placement.num_slots),
        )


def every_expert_lives(inspection: Inspection) -> Iterator[Finding]:
    """Check that each expert has as many slots as there are copies to give, the linear map in its order."""
    for pool in inspection.plan.pools:
        placement = pool.placement
        if placement is None:
            continue
        missing = strange = out_of_order = 0
        for row in set(placement.physical_to_logical_map):
            held = Counter(row)
            missing += sum(held[expert] == 0 for expert in range(placement.num_logical_experts))
            strange += sum(not 0 <= expert < placement.num_logical_experts for expert in held)
            if placement.method == "linear":
                # copies may come early, but the first slot of every expert stands in the experts' order
                out_of_order += sum(expert != place for place, expert in enumerate(dict.fromkeys(row)))
        yield judged(
            "every-expert-lives",
            inspection.name_of(pool),
            f"{placement.num_logical_experts} experts in {len(placement.layers)} layers: {missing} without a "
            f"slot, {strange} unknown"
            + (f", {out_of_order} slots out of the linear order" if placement.method == "linear" else ""),
            holds=not (missing or strange or out_of_order),
            expected=0.0,
            actual=float(missing + strange + out_of_order),
        )


def copies_apart(inspection: Inspection) -> Iterator[Finding]:
    """Check that two copies of an expert on one GPU are worth no more than one."""
    for pool in inspection.plan.pools:
        placement = pool.placement
        if placement is None or placement.num_slots == placement.num_logical_experts:
            continue
        together = sum(
            len(held) - len(set(held))
            for row in range(len(placement.layers))
            for held in (_held(placement, row, rank) for rank in range(_expert_ranks(placement)))
        )
        yield judged(
            "copies-apart",
            inspection.name_of(pool),
            f"{together} slots hold an expert that their rank already has",
            holds=together == 0,
            otherwise="warning",
            expected=0.0,
            actual=float(together),
        )


def coverage(inspection: Inspection) -> Iterator[Finding]:
    """Report how many experts are left when any one GPU or node is lost; most plans hold one copy: no fault."""
    for pool in inspection.plan.pools:
        placement = pool.placement
        if placement is None:
            continue
        ranks = _expert_ranks(placement)
        node_ranks = max(placement.num_gpus // placement.num_nodes // placement.expert_tp, 1)
        by_gpu = _least_coverage(placement, [[rank] for rank in range(ranks)])
        by_node = _least_coverage(
            placement, [list(range(first, min(first + node_ranks, ranks))) for first in range(0, ranks, node_ranks)]
        )
        copies = pool.strategy.instances
        others = f"; {copies - 1} more instance(s) hold all of them" if copies > 1 else ""
        yield judged(
            "coverage",
            inspection.name_of(pool),
            f"at the worst, {by_gpu:.1%} of the experts of an instance are left when a GPU is lost, "
            f"{by_node:.1%} when a node "
            f"is{others}",
            holds=True,
            actual=by_gpu,
        )


def work_is_scheduled(inspection: Inspection) -> Iterator[Finding]:
    """Check that the steps of all groups together hold the workload's tokens or sequences, neither fewer nor more."""
    plan = inspection.plan
    workload = plan.workload
    for pool in plan.pools:
        schedule, subject = pool.schedule, inspection.name_of(pool)
        groups = pool.strategy.attn_dp * pool.strategy.instances // pool.strategy.cp
        tokens = schedule.prefill_tokens + schedule.decode_sequences
        wrong_kind = (pool.role in {"prefill", "training"}) == bool(schedule.decode_sequences) or (
            pool.role == "decode" and schedule.prefill_tokens > 0
        )
        if tokens == 0 or wrong_kind or (schedule.prefill_tokens and not schedule.prompt_tokens):
            yield judged(
                "work-is-scheduled",
                subject,
                "a micro-batch without tokens or with those of another phase, or prompts without a length",
                holds=False,
            )
            continue
        wanted, done, unit = _wanted(inspection, pool)
        if wanted is None:
            message = f"{schedule.num_microbatches} micro-batches of {tokens:,} tokens for each of {groups} groups"
            bounded = schedule.num_microbatches <= _MOST_MICROBATCHES * pool.strategy.pp
            yield judged("work-is-scheduled", subject, message, holds=bounded)
            continue
        # rounding up may add one token or sequence to every micro-batch of every group
        most = wanted + schedule.num_microbatches * groups
        yield judged(
            "work-is-scheduled",
            subject,
            f"{schedule.num_microbatches} micro-batches x {groups} groups hold {done:,} {unit}, "
            f"{workload.name} has {wanted:,}",
            holds=wanted <= done <= most,
            expected=float(wanted),
            actual=float(done),
        )
        same_length = schedule.prompt_tokens in {0, workload.input_tokens}
        same_context = schedule.context_tokens in {0, workload.input_tokens + workload.output_tokens // 2}
        yield judged(
            "work-is-scheduled",
            subject,
            f"prompts of {schedule.prompt_tokens:,} and contexts of {schedule.context_tokens:,} tokens; the "
            "workload's are "
            f"{workload.input_tokens:,} and {workload.input_tokens + workload.output_tokens // 2:,}",
            holds=same_length and same_context,
        )


def _wanted(inspection: Inspection, pool: Pool) -> tuple[int | None, int, str]:
    """Return (what the workload asks of the pool, what its schedule holds, of what)."""
    workload, schedule = inspection.plan.workload, pool.schedule
    groups = pool.strategy.attn_dp * pool.strategy.instances // pool.strategy.cp
    if workload.kind in {"prefill", "training"}:
        asked = workload.tokens_in_flight or (workload.concurrency or 0) * workload.input_tokens
        return asked, schedule.num_microbatches * schedule.prefill_tokens * groups, "tokens"
    sequences = schedule.num_microbatches * schedule.decode_sequences * groups
    if workload.concurrency is None or pool.role == "prefill":
        return None, sequences, "sequences"
    return workload.concurrency, sequences, "sequences"


def _expert_ranks(placement: Placement) -> int:
    return placement.num_gpus // placement.expert_tp


def _held(placement: Placement, row: int, rank: int) -> tuple[int, ...]:
    width = placement.num_slots // _expert_ranks(placement)
    return placement.physical_to_logical_map[row][rank * width : (rank + 1) * width]


def _least_coverage(placement: Placement, losses: list[list[int]]) -> float:
    """Return the smallest share of (layer, expert) pairs that is left over the losses of ranks."""
    rows = Counter(placement.physical_to_logical_map)
    layers = len(placement.layers)
    first = {row: index for index, row in reversed(list(enumerate(placement.physical_to_logical_map)))}
    gone = [0.0] * len(losses)
    for row, count in rows.items():
        copies = Counter(row)
        for index, lost in enumerate(losses):
            here = Counter(expert for rank in lost for expert in _held(placement, first[row], rank))
            gone[index] += count * sum(number == copies[expert] for expert, number in here.items())
    return 1 - max(gone) / (layers * placement.num_logical_experts)
