"""Claims about how the model is divided over the GPUs, and how evenly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.projection.load import load_classes
from moiety.projection.scenario import scenario_of
from moiety.verify.closed_form import layer_flops
from moiety.verify.observation import Observation, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.verify.case import AuditCase
    from moiety.verify.claims import Claim

_EVEN = 0.05
"""Loads that differ by less are even: more than the scatter of a large batch, less than anybody would correct."""


def degrees(case: AuditCase) -> Iterator[Observation]:
    """Compare experts and degrees with the model and the claimed strategy."""
    moe, strategy = case.plan.model.moe, case.pool.strategy
    for quantity, what, actual in (
        ("num_experts", "routed experts of the model's MoE layers", moe.num_experts if moe else 0),
        ("tensor_parallelism", f"tensor parallelism of {strategy.name}", strategy.tp),
        ("expert_parallelism", f"expert parallelism of {strategy.name}", strategy.ep),
    ):
        for claim in case.claimed(quantity):
            yield _compared("degrees", claim, actual, f"{what}: {actual}")


def modules(case: AuditCase) -> Iterator[Observation]:
    """Compare module counts with experts x expert TP, and modules per GPU with that over the GPUs."""
    moe, strategy = case.plan.model.moe, case.pool.strategy
    if moe is None:
        return
    total = moe.num_experts * strategy.etp * strategy.instances
    product = f"{moe.num_experts} experts x {strategy.etp} expert-TP partitions"
    product += f" x {strategy.instances} instances" if strategy.instances > 1 else ""
    for claim in case.claimed("num_modules"):
        yield _compared("modules", claim, total, f"{product} = {total}")
    per_gpu = total / (strategy.num_gpus // strategy.pp)
    for claim in case.claimed("modules_per_gpu"):
        share = f"{product} = {total} over {strategy.num_gpus // strategy.pp} GPUs of a layer = {per_gpu:g}"
        yield _compared("modules", claim, per_gpu, share)


def experts_per_gpu(case: AuditCase) -> Iterator[Observation]:
    """Compare whole experts per GPU with experts over GPUs: an expert that is split lies on several."""
    moe, strategy = case.plan.model.moe, case.pool.strategy
    if moe is None:
        return
    for claim in case.claimed("experts_per_gpu"):
        stage = strategy.gpus_per_stage
        whole = moe.num_experts / stage
        agrees = claim.interval.near(whole, 1e-9)
        partners = (
            []
            if agrees
            else [*case.claimed("num_experts"), *case.claimed("num_gpus"), *case.claimed("tensor_parallelism")]
        )
        text = (
            f"claimed {claim.shown} per GPU x {stage} GPUs = {claim.number * stage:g} experts, the model has "
            f"{moe.num_experts}; "
            f"{moe.num_experts} experts over {stage} GPUs = {whole:g} per GPU"
        )
        if strategy.etp > 1:
            text += f", that is {moe.num_experts // strategy.ep} per group of {strategy.etp} GPUs that share it"
        yield Observation(
            rule="experts-per-gpu",
            outcome="supports" if agrees else "conflicts" if partners else "contradicts",
            claims=(claim.id, *(each.id for each in partners)),
            arithmetic=text,
            consistent={claim.id: claim.in_unit(whole)},
        )


def consecutive_experts(case: AuditCase) -> Iterator[Observation]:
    """Compare a linear placement matrix (node n holds experts n x v ... n x v + v - 1) with the plan's map."""
    placement, node = case.pool.placement, case.plan.cluster.gpus_per_node
    if placement is None:
        return
    slots_per_gpu = placement.num_slots / placement.num_gpus
    per_node = int(slots_per_gpu * node)
    for claim in case.claimed("consecutive_experts_per_node"):
        width = round(claim.number)
        rows = set(placement.physical_to_logical_map)
        agrees = width == per_node and all(
            row[first : first + width] == tuple(range(first, first + width))
            for row in rows
            for first in range(0, len(row), max(width, 1))
        )
        yield Observation(
            rule="consecutive-experts",
            outcome="supports" if agrees else "contradicts",
            claims=(claim.id,),
            arithmetic=f"claimed {claim.shown} in order per node; {placement.num_slots} slots on "
            f"{placement.num_gpus} GPUs, "
            f"{node} GPUs a node: {per_node} per node, {'in order' if agrees else 'not as claimed'} in "
            f"{len(placement.layers)} layers",
            consistent={claim.id: claim.in_unit(per_node)},
        )


def imbalance(case: AuditCase) -> Iterator[Observation]:
    """Compare how even load, memory and computation are with the plan's: the busiest over the mean."""
    plan, pool = case.plan, case.pool
    scenario = scenario_of(plan, case.calibration)
    classes = load_classes(scenario, pool.strategy, pool.schedule, pool.placement)
    busiest = max(max(each.loads) for each in classes)
    skew = "measured shares" if plan.expert_shares else f"Zipf exponent {plan.workload.routing_skew:g}"
    found = f"busiest expert rank over the mean: {busiest:.3f} ({skew}, scatter of finite batches included)"
    for claim in case.claimed("expert_load_imbalance"):
        yield _compared("balance", claim, busiest, found, _EVEN)
    stages = pool.strategy.pp
    for quantity, what in (("memory_imbalance", "weights"), ("compute_imbalance", "FLOPs")):
        for claim in case.claimed(quantity):
            if stages > 1:
                text = f"{stages} pipeline stages divide {plan.model.num_layers} layers"
                layers = -(-plan.model.num_layers // stages) * stages / plan.model.num_layers
                yield _compared("balance", claim, layers, f"{text}: fullest over mean in {what} {layers:.3f}", _EVEN)
                continue
            factor = busiest if what == "FLOPs" else 1.0
            if what == "FLOPs":
                factor = 1 + (busiest - 1) * _routed_share(case)
            text = (
                f"one stage, the same layers and slots on all {pool.num_gpus} GPUs: {what} fullest over "
                f"mean {factor:.3f}"
            )
            yield _compared("balance", claim, factor, text, _EVEN)


def _routed_share(case: AuditCase) -> float:
    """Return the share of a token's FLOPs that its routed experts take."""
    model = case.plan.model
    context = (case.pool.schedule.prompt_tokens + 1) / 2 or case.pool.schedule.context_tokens
    total = routed = 0.0
    for kind in model.layer_blocks:
        block = model.blocks[kind]
        total += layer_flops(block, model.hidden_size, context)
        if block.moe is not None:
            routed += 2 * block.moe.top_k * block.moe.expert_parameters(model.hidden_size)
    return routed / total


def _compared(rule: str, claim: Claim, actual: float, found: str, tolerance: float = 1e-9) -> Observation:
    agreeing: Outcome = "confirms" if rule in {"degrees", "modules"} else "supports"
    return Observation(
        rule=rule,
        outcome=agreeing if claim.interval.near(actual, tolerance) else "contradicts",
        claims=(claim.id,),
        arithmetic=f"claimed {claim.shown}; {found}",
        consistent={claim.id: claim.in_unit(actual)},
    )
