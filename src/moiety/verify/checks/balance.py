"""Load balance: experts, pipeline stages, and the memory of both."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from moiety.placement.load import zipf_share
from moiety.strategy.stages import held_layers
from moiety.verify.closed_form import dense_weights, expert_weights, layer_flops, router_weights
from moiety.verify.findings import Finding, judged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.plan import Pool
    from moiety.verify.inspection import Inspection

_UNEVEN_EXPERTS = 1.5
"""Busiest over mean beyond which replicas or another placement are worth a look."""
_UNEVEN_STAGES = 1.25


def expert_load(inspection: Inspection) -> Iterator[Finding]:
    """Report the busiest expert rank over the mean, in the worst layer.

    Copies share an expert's tokens equally, or as a trace was served.
    """
    plan = inspection.plan
    for pool in plan.pools:
        placement = pool.placement
        if placement is None or placement.num_gpus == placement.expert_tp:
            continue
        law = zipf_share(placement.num_logical_experts, plan.workload.routing_skew)
        ranks = placement.num_gpus // placement.expert_tp
        width = placement.num_slots // ranks
        worst, worst_layer = 0.0, placement.layers[0]
        served = placement.traffic.rank_loads if placement.traffic is not None else ()
        seen: set[tuple[int, ...]] = set()
        for row, slots in enumerate(placement.physical_to_logical_map):
            if plan.expert_shares is None and not served and slots in seen:
                continue
            seen.add(slots)
            shares = plan.expert_shares[row] if plan.expert_shares else law
            copies = Counter(slots)
            per_slot = [shares[expert] / copies[expert] for expert in slots]
            loads = [sum(per_slot[rank * width : (rank + 1) * width]) for rank in range(ranks)]
            loads = served[row] if served else loads
            peak = max(loads) / (sum(loads) / ranks)
            if peak > worst:
                worst, worst_layer = peak, placement.layers[row]
        source = "measured shares" if plan.expert_shares else f"Zipf exponent {plan.workload.routing_skew:g}"
        source = "as the trace is served" if served else source
        yield judged(
            "expert-load",
            inspection.name_of(pool),
            f"busiest expert rank over the mean: {worst:.3f} at layer {worst_layer} ({source})",
            holds=worst <= _UNEVEN_EXPERTS,
            otherwise="warning",
            expected=1.0,
            actual=worst,
        )


def stage_balance(inspection: Inspection) -> Iterator[Finding]:
    """Compare the pipeline stages' FLOPs and weights: the largest over the mean."""
    plan = inspection.plan
    for pool in plan.pools:
        layers = held_layers(plan.model.num_layers, pool.strategy.pp, plan.options.virtual_stages)
        tiled = sorted(layer for stage in layers for layer in stage) == list(range(plan.model.num_layers))
        yield judged(
            "stages-tile-layers",
            inspection.name_of(pool),
            f"{len(layers)} stage(s) hold {plan.model.num_layers} layers, {min(map(len, layers))} to "
            f"{max(map(len, layers))} each",
            holds=tiled and min(map(len, layers)) > 0,
        )
        if pool.strategy.pp == 1:
            continue
        for what, sizes in (("FLOPs", _stage_flops(inspection, pool)), ("weights", _stage_weights(inspection, pool))):
            ratio = max(sizes) / (sum(sizes) / len(sizes))
            yield judged(
                "stage-balance",
                inspection.name_of(pool),
                f"{what} of the largest of {len(sizes)} stages over the mean: {ratio:.3f}",
                holds=ratio <= _UNEVEN_STAGES,
                otherwise="warning",
                expected=1.0,
                actual=ratio,
            )


def _stage_flops(inspection: Inspection, pool: Pool) -> list[float]:
    model = inspection.plan.model
    context = pool.schedule.context_tokens or (pool.schedule.prompt_tokens + 1) / 2
    per_block = [layer_flops(block, model.hidden_size, context) for block in model.blocks]
    return [
        sum(per_block[model.layer_blocks[layer]] for layer in stage)
        for stage in held_layers(model.num_layers, pool.strategy.pp, inspection.plan.options.virtual_stages)
    ]


def _stage_weights(inspection: Inspection, pool: Pool) -> list[float]:
    model, strategy = inspection.plan.model, pool.strategy
    per_block = [
        dense_weights(block, model.hidden_size, strategy.tp)
        + router_weights(block, model.hidden_size)
        + expert_weights(
            block, model.hidden_size, getattr(block.feed_forward, "num_experts", 0) / strategy.ep, strategy.etp
        )
        for block in model.blocks
    ]
    return [
        sum(per_block[model.layer_blocks[layer]] for layer in stage)
        for stage in held_layers(model.num_layers, strategy.pp, inspection.plan.options.virtual_stages)
    ]
