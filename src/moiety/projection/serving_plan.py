"""A plan's pools as workers of a serving engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.calibration.engine_memory import EngineMemory
from moiety.calibration.scheduling import scheduling
from moiety.calibration.serving_catalog import load_serving
from moiety.errors import InputError
from moiety.projection.scenario import scenario_of
from moiety.projection.serving_pool import ServingPool

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.calibration.serving import PrefillApart
    from moiety.plan import Plan, Pool
    from moiety.projection.scenario import Scenario


@dataclass(frozen=True, slots=True)
class ServingPools:
    """The workers that decode, and those that compute prompts where these are others."""

    decode: ServingPool
    prefill: ServingPool | None
    apart: PrefillApart | None = None
    """What such deployments add, where their engine was measured."""


def serving_pools(plan: Plan, calibration: Calibration) -> ServingPools:
    """Return the pools of a plan that serves whole requests; raise InputError where it does not."""
    by_role = {pool.role: pool for pool in plan.pools}
    scenario = scenario_of(plan, calibration)
    if "mixed" in by_role:
        return ServingPools(_pool(scenario, by_role["mixed"], plan), None)
    if {"prefill", "decode"} <= by_role.keys():
        decode, prefill = (_pool(scenario, by_role[role], plan) for role in ("decode", "prefill"))
        return ServingPools(decode, prefill, load_serving().apart if decode.overheads.basis == "fitted" else None)
    rule = f"holds pools for {', '.join(sorted(by_role))}; requests need one for mixed, or prefill and decode"
    raise InputError(rule, source=plan.name, field="pools", remedy="plan a mixed workload, e.g. --workload chat")


def _pool(scenario: Scenario, pool: Pool, plan: Plan) -> ServingPool:
    """Return a pool whose cache has what its weights and the engine's reserve leave of the memory."""
    return ServingPool(
        scenario=scenario,
        strategy=pool.strategy,
        options=plan.options,
        overheads=scenario.overheads,
        scheduling=scheduling(plan.engine),
        memory=EngineMemory(1.0, scenario.overheads.reserve_bytes),
        placement=pool.placement,
        first_rank=pool.first_rank,
    )
