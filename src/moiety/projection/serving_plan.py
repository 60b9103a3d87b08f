"""A plan's pools as workers of a serving engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.calibration.engine_memory import EngineMemory
from moiety.calibration.serving import NOTHING_APART
from moiety.calibration.serving_catalog import load_serving
from moiety.errors import InputError
from moiety.projection.admission import CHUNK_TOKENS
from moiety.projection.scenario import scenario_of
from moiety.projection.serving_pool import plan_pool

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.calibration.serving import PrefillApart
    from moiety.plan import Options, Plan, Pool
    from moiety.projection.scenario import Scenario
    from moiety.projection.serving_pool import ServingPool
    from moiety.projection.step import Timing


@dataclass(frozen=True, slots=True)
class ServingPools:
    """The workers that decode, and those that compute prompts where these are others."""

    decode: ServingPool
    prefill: ServingPool | None
    apart: PrefillApart
    """What such deployments add."""


def serving_pools(plan: Plan, calibration: Calibration) -> ServingPools:
    """Return the pools of a plan that serves whole requests; raise InputError where it does not.

    Their caches have what weights and the engine's reserve leave of the memory.
    """
    scenario = scenario_of(plan, calibration)
    engine = scenario.overheads
    memory = EngineMemory(1 - engine.unused_share, engine.reserve_bytes, of_free=True)
    pools = {pool.role: as_workers(scenario, pool, plan.options, memory=memory) for pool in plan.pools}
    if "mixed" in pools:
        return ServingPools(pools["mixed"], None, apart_of(scenario))
    if {"prefill", "decode"} <= pools.keys():
        return ServingPools(pools["decode"], pools["prefill"], apart_of(scenario))
    rule = f"holds pools for {', '.join(sorted(pools))}; requests need one for mixed, or prefill and decode"
    raise InputError(rule, source=plan.name, field="pools", remedy="plan a mixed workload, e.g. --workload chat")


def as_workers(
    scenario: Scenario,
    pool: Pool,
    options: Options,
    *,
    timing: Timing = "estimated",
    memory: EngineMemory | None = None,
) -> ServingPool:
    """Return a pool of a plan as workers of its engine; `memory` None: what is in flight is known to fit."""
    return plan_pool(
        scenario,
        pool.strategy,
        options,
        pool.placement,
        pool.first_rank,
        timing=timing,
        memory=memory,
        step_tokens=pool.schedule.tokens_per_step if pool.role == "prefill" else CHUNK_TOKENS,
    )


def apart_of(scenario: Scenario) -> PrefillApart:
    """Return what prefill apart adds: where the scenario's engine was measured what is known of that, else nothing."""
    return load_serving().apart if scenario.overheads.basis == "fitted" else NOTHING_APART
