"""What is left of an instance that loses some of its GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.placement.load import coverage
from moiety.projection.load import classes_of, expert_share
from moiety.projection.scenario import scenario_of
from moiety.projection.step import time_step
from moiety.strategy.stages import stage_layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moiety.calibration.calibration import Calibration
    from moiety.model.model import Model
    from moiety.placement.placement import Placement
    from moiety.plan import Plan, Pool
    from moiety.projection.load import LoadClass
    from moiety.projection.scenario import Scenario
    from moiety.strategy.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Survivors:
    """An instance that goes on without some of its attention groups."""

    share: float
    """Of the instance's throughput before."""
    reloaded: int
    """Experts a layer that had no copy left."""
    reload_bytes: int
    """Most bytes that one GPU takes on."""
    fits: bool


def goes_on(strategy: Strategy, lost: Sequence[int]) -> bool:
    """Return whether an instance can go on without the ranks `lost`, counted from its first.

    Its experts must be spread over attention groups of one stage, and one of those groups must be whole.
    """
    spread = strategy.pp == 1 and strategy.ep > 1 and strategy.attn_dp > 1
    return spread and bool(_alive_ranks(strategy, lost)) and len(_stopped(strategy, lost)) < strategy.attn_dp


def instance_coverage(model: Model, pool: Pool, lost: Sequence[int]) -> float:
    """Return the share of (layer, expert) pairs that still have a copy in an instance without the ranks `lost`.

    Attention groups without one of their GPUs stop as a whole.
    """
    if pool.placement is None:
        return 1.0
    strategy, placement = pool.strategy, pool.placement
    held = 0.0
    for stage, layers in enumerate(stage_layers(model.num_layers, strategy.pp)):
        rows = [row for row, layer in enumerate(placement.layers) if layer in layers]
        here = [rank % strategy.gpus_per_stage for rank in lost if rank // strategy.gpus_per_stage == stage]
        alive = _alive_ranks(strategy, here)
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
    """Return how an instance goes on: experts without a copy move to the survivors that hold least."""
    strategy, placement, memory = pool.strategy, pool.placement, pool.memory
    assert placement is not None, "experts have a placement"
    assert memory is not None, "the plan is evaluated"
    scenario = scenario_of(plan, calibration)
    left = 1 - len(_stopped(strategy, lost)) / strategy.attn_dp
    alive = _alive_ranks(strategy, lost)
    held, reloaded = _taken_over(placement, alive)
    before = {rank: placement.experts_of_rank(0, rank) for rank in range(strategy.ep)}
    step_before, step_after = (
        _step_s(scenario, pool, plan, _classes(scenario, pool, experts, share))
        for experts, share in ((before, 1.0), (held, left))
    )
    extra = max(len(experts) for experts in held.values()) - placement.slots_per_rank
    reload_bytes = max(extra, 0) * memory.bytes_by_kind["expert_weights"] // placement.slots_per_rank
    return Survivors(
        share=left * min(step_before / step_after, 1.0),
        reloaded=reloaded,
        reload_bytes=reload_bytes,
        fits=memory.total_bytes + reload_bytes <= memory.capacity_bytes,
    )


def _stopped(strategy: Strategy, lost: Sequence[int]) -> set[int]:
    """Return the attention groups of a stage that lack one of their GPUs."""
    return {rank // strategy.tp for rank in lost}


def _alive_ranks(strategy: Strategy, lost: Sequence[int]) -> list[int]:
    """Return the expert ranks of a stage all of whose GPUs go on."""
    width = strategy.tp
    gone = {rank for group in _stopped(strategy, lost) for rank in range(group * width, (group + 1) * width)}
    dead = {rank // strategy.etp for rank in gone}
    return [rank for rank in range(strategy.ep) if rank not in dead]


def _taken_over(placement: Placement, alive: Sequence[int]) -> tuple[dict[int, tuple[int, ...]], int]:
    """Return the experts of every survivor, and how many of them had no copy left."""
    held = {rank: list(placement.experts_of_rank(0, rank)) for rank in alive}
    covered = {expert for experts in held.values() for expert in experts}
    homeless = [expert for expert in range(placement.num_logical_experts) if expert not in covered]
    for expert in homeless:
        held[min(alive, key=lambda rank: (len(held[rank]), rank))].append(expert)
    return {rank: tuple(experts) for rank, experts in held.items()}, len(homeless)


def _classes(scenario: Scenario, pool: Pool, held: Mapping[int, tuple[int, ...]], share_left: float) -> list[LoadClass]:
    """Return the classes of ranks that hold these experts, relative to the mean load when every group worked."""
    model, strategy, placement = scenario.model, pool.strategy, pool.placement
    assert placement is not None, "experts have a placement"
    assert model.moe is not None, "experts have a router"
    copies: dict[int, int] = {}
    for experts in held.values():
        for expert in experts:
            copies[expert] = copies.get(expert, 0) + 1
    row_of = {layer: row for row, layer in enumerate(placement.layers)}
    columns: list[tuple[float, ...]] = []
    for layer in range(model.num_layers):
        if layer not in row_of:
            columns.append((1.0,) * len(held))
            continue
        share = expert_share(scenario, row_of[layer], placement.num_logical_experts)
        columns.append(
            tuple(
                round(share_left * strategy.ep * sum(share[expert] / copies[expert] for expert in experts), 6)
                for experts in held.values()
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
