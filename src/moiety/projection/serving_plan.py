"""A plan's pools as workers of a serving engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.calibration.engine_memory import EngineMemory
from moiety.calibration.engines import family_calibration
from moiety.calibration.scheduling import keeps_all_tokens, keeps_whole, mixes_prefill
from moiety.calibration.serving import EngineRelease
from moiety.calibration.serving_catalog import load_serving
from moiety.errors import InputError
from moiety.projection.serving_pool import ServingPool

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration, Engine, EngineOverheads
    from moiety.calibration.serving import PrefillApart
    from moiety.plan import Plan, Pool


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
    if "mixed" in by_role:
        return ServingPools(_pool(plan, by_role["mixed"], calibration), None)
    if {"prefill", "decode"} <= by_role.keys():
        decode, prefill = (_pool(plan, by_role[role], calibration) for role in ("decode", "prefill"))
        return ServingPools(decode, prefill, load_serving().apart if decode.release.basis == "fitted" else None)
    rule = f"holds pools for {', '.join(sorted(by_role))}; requests need one for mixed, or prefill and decode"
    raise InputError(rule, source=plan.name, field="pools", remedy="plan a mixed workload, e.g. --workload chat")


def _pool(plan: Plan, pool: Pool, calibration: Calibration) -> ServingPool:
    """Return a pool with the constants that were measured for its engine on such devices, else with the plan's own."""
    architecture = plan.cluster.device.architecture
    family = load_serving().family(architecture)
    reserve = calibration.engines[plan.engine].reserve_bytes
    measured = architecture in family.architectures and any(each.engine == plan.engine for each in family.releases)
    if measured and plan.calibration is None:
        calibration, release = family_calibration(family), family.newest_release(plan.engine)
    else:
        release = _assumed_release(plan.engine, calibration.engines[plan.engine])
    return ServingPool(
        model=plan.model,
        cluster=plan.cluster,
        strategy=pool.strategy.model_copy(update={"instances": 1}),
        options=plan.options,
        num_workers=pool.strategy.instances,
        calibration=calibration,
        release=release,
        workload=plan.workload,
        memory=EngineMemory(1.0, reserve),
    )


def _assumed_release(engine: Engine, overheads: EngineOverheads) -> EngineRelease:
    """Return an engine whose queues were not measured: it schedules by its defaults, and waits are as modelled."""
    return EngineRelease(
        engine=engine,
        mixes_prefill=mixes_prefill(engine),
        keeps_all_tokens=keeps_all_tokens(engine),
        keeps_whole=keeps_whole(engine),
        interference=1.0,
        unshared_prefill=0.0,
        data_parallel_slowdown=1.0,
        wait=1.0,
        burst=0.0,
        burst_growth=0.0,
        convoy=1.0,
        cold_step_s=0.0,
        cold_fp4_step_s=0.0,
        **overheads.overheads(),
    )
