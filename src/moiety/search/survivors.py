"""What is left of an instance that loses some of its GPUs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.placement.load import coverage
from moiety.placement.recovery import recover
from moiety.projection.load import classes_of, expert_share
from moiety.projection.scenario import scenario_of
from moiety.projection.step import time_step
from moiety.strategy.stages import held_layers
from moiety.strategy.survivors import alive_expert_ranks, stopped_groups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moiety.calibration.calibration import Calibration
    from moiety.model.model import Model
    from moiety.placement.placement import Placement
    from moiety.plan import Plan, Pool
    from moiety.projection.load import LoadClass
    from moiety.projection.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Survivors:
    """An instance that goes on without some of its attention groups."""

    share: float
    """Of the instance's throughput before."""
    reloaded: int
    """Experts a layer that had no copy left."""
    reload_bytes: int
    """Most bytes that one GPU reads from the checkpoint."""
    fits: bool
    """Whether memory has room for the slots that GPUs take on."""


def instance_coverage(model: Model, pool: Pool, lost: Sequence[int], virtual_stages: int = 1) -> float:
    """Return the share of (layer, expert) pairs that still have a copy in an instance without the ranks `lost`.

    Attention groups without one of their GPUs stop as a whole.
    """
    if pool.placement is None:
        return 1.0
    strategy, placement = pool.strategy, pool.placement
    held = 0.0
    for stage, layers in enumerate(held_layers(model.num_layers, strategy.pp, virtual_stages)):
        rows = [row for row, layer in enumerate(placement.layers) if layer in layers]
        here = [rank % strategy.gpus_per_stage for rank in lost if rank // strategy.gpus_per_stage == stage]
        alive = alive_expert_ranks(strategy, here)
        dead = frozenset(range(strategy.ep)) - frozenset(alive)
        if rows:
            part = placement.model_copy(
                update={
                    "layers": tuple(placement.layers[row] for row in rows),
                    "physical_to_logical_map": tuple(placement.physical_to_logical_map[row] for row in rows),
                }
            )
            held += len(rows) * coverage(part, dead)
    return held / len(placement.layers)


def surviving_instance(plan: Plan, pool: Pool, lost: Sequence[int], calibration: Calibration) -> Survivors:
    """Return how an instance goes on: by the rules of `placement/recovery.py`, as the control plane would have it."""
    strategy, placement, memory = pool.strategy, pool.placement, pool.memory
    assert placement is not None, "experts have a placement"
    assert memory is not None, "the plan is evaluated"
    scenario = scenario_of(plan, calibration)
    left = 1 - len(stopped_groups(strategy, lost)) / strategy.attn_dp
    alive = alive_expert_ranks(strategy, lost)
    taken_over = _taken_over(scenario, placement, alive)
    before = tuple(
        {rank: placement.experts_of_rank(row, rank) for rank in range(strategy.ep)}
        for row in range(len(placement.layers))
    )
    step_before, step_after = (
        _step_s(scenario, pool, plan, _classes(scenario, pool, experts, share))
        for experts, share in ((before, 1.0), (taken_over.held, left))
    )
    slot_bytes = memory.bytes_by_kind["expert_weights"] // placement.slots_per_rank
    more_bytes = (taken_over.slots - placement.slots_per_rank) * slot_bytes
    return Survivors(
        share=left * min(step_before / step_after, 1.0),
        reloaded=taken_over.homeless,
        reload_bytes=taken_over.most_read * slot_bytes // len(placement.layers),
        fits=memory.total_bytes + more_bytes <= memory.capacity_bytes,
    )


@dataclass(frozen=True, slots=True)
class _TakenOver:
    """What survivors hold."""

    held: tuple[dict[int, tuple[int, ...]], ...]
    """By layer the experts of each."""
    homeless: int
    """Experts of a layer that had no copy left, at most."""
    most_read: int
    """Experts that one of them reads from the checkpoint, of all layers, at most."""
    slots: int
    """Of a rank."""


def _taken_over(scenario: Scenario, placement: Placement, alive: Sequence[int]) -> _TakenOver:
    import numpy as np  # noqa: PLC0415 - nothing else here needs it

    ranks, experts = placement.num_expert_ranks, placement.num_logical_experts
    rows = np.array(placement.physical_to_logical_map, dtype=np.int64).reshape(len(placement.layers), ranks, -1)
    taking = np.isin(np.arange(ranks), alive)
    shares = np.array([expert_share(scenario, row, experts) for row in range(len(placement.layers))])
    recovery = recover(rows, taking, shares, most_slots=experts)
    read = [fill for fill in recovery.fills if fill.source is None]
    homeless, by_rank = Counter(fill.layer for fill in read), Counter(fill.gpu for fill in read)
    held = tuple({rank: tuple(layer[rank].tolist()) for rank in alive} for layer in recovery.slot_map)
    return _TakenOver(
        held, max(homeless.values(), default=0), max(by_rank.values(), default=0), recovery.slot_map.shape[2]
    )


def _classes(
    scenario: Scenario, pool: Pool, held: Sequence[Mapping[int, tuple[int, ...]]], share_left: float
) -> list[LoadClass]:
    """Return the classes of ranks that hold these experts, relative to the mean load when every group worked."""
    model, strategy, placement = scenario.model, pool.strategy, pool.placement
    assert placement is not None, "experts have a placement"
    assert model.moe is not None, "experts have a router"
    row_of = {layer: row for row, layer in enumerate(placement.layers)}
    columns: list[tuple[float, ...]] = []
    for layer in range(model.num_layers):
        if layer not in row_of:
            columns.append((1.0,) * len(held[0]))
            continue
        here = held[row_of[layer]]
        copies = Counter(expert for experts in here.values() for expert in experts)
        share = expert_share(scenario, row_of[layer], placement.num_logical_experts)
        columns.append(
            tuple(
                round(share_left * strategy.ep * sum(share[expert] / copies[expert] for expert in experts), 6)
                for experts in here.values()
            )
        )
    rows = pool.schedule.tokens_per_microbatch * strategy.attn_dp * model.moe.top_k / strategy.ep
    return classes_of(list(zip(*columns, strict=True)), [layer in row_of for layer in range(model.num_layers)], rows)


def _step_s(scenario: Scenario, pool: Pool, plan: Plan, classes: list[LoadClass]) -> float:
    checkpointed = frozenset(pool.memory.checkpointed_layers) if pool.memory else frozenset[int]()
    return time_step(
        scenario,
        pool.strategy,
        pool.schedule,
        plan.options,
        pool.placement,
        training=pool.role == "training",
        first_rank=pool.first_rank,
        checkpointed=checkpointed,
        classes=classes,
    ).step_s
