"""The expert layers of a rank: its slots' weights, which slot serves a token, and how tokens get there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moiety.cost.expert_traffic import stage_widths
from moiety.runtime.comm.priority import Priority
from moiety.runtime.conversion import COMPUTED_DTYPES, WIRE_DTYPES
from moiety.runtime.dispatch.differentiable import differentiable_exchange
from moiety.runtime.dispatch.exchange import StageShape
from moiety.runtime.dispatch.serving import slot_choosers
from moiety.runtime.dispatch.table import exchange_over
from moiety.runtime.experts.backends import backend_for
from moiety.runtime.experts.exchanged import ExchangedExperts
from moiety.runtime.experts.gathered import GatheredExperts
from moiety.runtime.experts.layer import ExpertLayer, HeldLayer
from moiety.runtime.experts.local import LocalExperts

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from moiety.dtypes import Dtype
    from moiety.placement.placement import Placement
    from moiety.runtime.block_scaled import CodeFormat
    from moiety.runtime.comm.network import Network
    from moiety.runtime.dispatch.serving import SlotChooser
    from moiety.runtime.experts.layer import RoutedExperts
    from moiety.runtime.experts.supply import ExpertSupply
    from moiety.runtime.overlap import Turns
    from moiety.runtime.seat import Seat
    from moiety.runtime.telemetry import Recorder


_CODES: dict[Dtype, CodeFormat] = {"fp8": "fp8", "mxfp4": "mxfp4"}
"""Formats of a plan that experts are held in as codes and scales."""


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """What a model's experts are for."""

    trains: bool = False
    """Whether gradients come back through them and the exchanges."""
    backend: str | None = None
    """What computes them (`backends.py`); None: the best for their weights and their use."""


FOR_INFERENCE = ExpertUse()


def expert_layers(
    seat: Seat,
    modules: Mapping[int, tuple[str, Any]],
    supply: ExpertSupply,
    network: Network,
    turns: Turns,
    recorder: Recorder,
    *,
    use: ExpertUse = FOR_INFERENCE,
) -> dict[int, ExpertLayer]:
    """Return the expert layers of the stage's MoE layers, by their index in the model.

    `modules` gives for each the name of its experts' parameters and transformers' module, whose gate is used.
    """
    placement = seat.pool.placement
    if placement is None:
        return {}
    shape = stage_shape(seat, placement)
    routed = _routed(seat, shape, network, turns, recorder, trains=use.trains)
    choosers = rank_choosers(seat, placement, network.device)
    codes = None if use.trains else _CODES.get(seat.plan.options.dtypes.experts)
    found: dict[int, ExpertLayer] = {}
    for row, index in enumerate(placement.layers):
        if index not in seat.layers:
            continue
        prefix, module = modules[index]
        experts = placement.experts_of_rank(row, seat.coordinates["ep"])
        weights = supply.experts(seat, index, prefix, module, experts, codes=codes)
        held = HeldLayer(index, choosers[index], weights, backend_for(weights, use.backend, trains=use.trains))
        found[index] = ExpertLayer(held, routed, partial=seat.strategy.tp > 1)
    return found


def rank_choosers(seat: Seat, placement: Placement, device: torch.device) -> dict[int, SlotChooser]:
    """Return which slot serves the tokens of a seat under a placement, by the layer's index in the model."""
    shape = stage_shape(seat, placement)
    return slot_choosers(
        placement,
        home=shape.index // shape.gpus_per_node if seat.routes_tokens else 0,
        num_nodes=shape.num_nodes if shape.gpus_per_node % shape.expert_tp == 0 else 1,
        first_token=shape.index % shape.gpus_per_node if seat.routes_tokens else 0,
        token_step=shape.gpus_per_node if seat.routes_tokens else 1,
        device=device,
    )


def stage_shape(seat: Seat, placement: Placement) -> StageShape:
    """Return the stage of a seat as an exchange sees it; nodes are the innermost domains of the cluster's links."""
    strategy = seat.strategy
    width = stage_widths(strategy, seat.plan.cluster, seat.pool.first_rank)[0]
    return StageShape(
        index=seat.coordinates["stage"],
        num_gpus=strategy.gpus_per_stage,
        gpus_per_node=width,
        expert_tp=strategy.etp,
        slots_per_rank=placement.slots_per_rank,
    )


def _routed(
    seat: Seat, shape: StageShape, network: Network, turns: Turns, recorder: Recorder, *, trains: bool
) -> RoutedExperts:
    """Return how tokens meet experts under the seat's strategy."""
    strategy = seat.strategy
    if seat.routes_tokens:
        options = seat.plan.options
        known = COMPUTED_DTYPES if trains else WIRE_DTYPES
        formats = wire_dtype(options.dtypes.dispatch, seat, known), wire_dtype(options.dtypes.combine, seat)
        ranks = seat.groups["stage"]
        if trains:
            exchange = differentiable_exchange(shape, network, ranks, formats)
        else:
            exchange = exchange_over(options.all_to_all, shape, network, ranks, formats)
        return ExchangedExperts(
            exchange, tp=strategy.tp, tp_index=seat.coordinates["tp"], turns=turns, recorder=recorder
        )
    local = LocalExperts(
        first_slot=shape.first_slot,
        num_slots=shape.slots_per_rank,
        holds_all=shape.num_gpus == shape.expert_tp and strategy.attn_dp == 1,
        recorder=recorder,
    )
    if strategy.attn_dp == 1:
        return local
    group = network.group(seat.groups["attn_dp"], "tokens", Priority.EXCHANGE)
    counts = network.group(seat.groups["attn_dp"], "counts", Priority.EXCHANGE)
    return GatheredExperts(local, group, counts, recorder)


def wire_dtype(name: Dtype, seat: Seat, known: Mapping[Dtype, torch.dtype] = COMPUTED_DTYPES) -> torch.dtype:
    """Return what rows have on the wire: the plan's format, or the activations' where it is none of the `known`."""
    return known.get(name, COMPUTED_DTYPES[seat.plan.options.dtypes.activations])
