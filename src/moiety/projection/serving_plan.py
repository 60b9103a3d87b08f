"""A plan's pools as workers of a serving engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.calibration.engines import family_calibration
from moiety.calibration.serving import EngineRelease
from moiety.calibration.serving_catalog import load_serving
from moiety.errors import InputError
from moiety.projection.serving_pool import ServingPool

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.plan import Plan, Pool


@dataclass(frozen=True, slots=True)
class ServingPools:
    """The workers that decode, and those that compute prompts where these are others."""

    decode: ServingPool
    prefill: ServingPool | None


def serving_pools(plan: Plan, calibration: Calibration) -> ServingPools:
    """Return the pools of a plan that serves whole requests; raise InputError where it does not."""
    by_role = {pool.role: pool for pool in plan.pools}
    if "mixed" in by_role:
        return ServingPools(_pool(plan, by_role["mixed"], calibration), None)
    if {"prefill", "decode"} <= by_role.keys():
        return ServingPools(_pool(plan, by_role["decode"], calibration), _pool(plan, by_role["prefill"], calibration))
    rule = f"holds pools for {', '.join(sorted(by_role))}; requests need one for mixed, or prefill and decode"
    raise InputError(rule, source=plan.name, field="pools", remedy="plan a mixed workload, e.g. --workload chat")


def _pool(plan: Plan, pool: Pool, calibration: Calibration) -> ServingPool:
    release = _release(plan, calibration)
    measured = release.basis == "fitted"
    if measured:
        calibration = family_calibration(load_serving().family(plan.cluster.device.architecture))
    return ServingPool(
        model=plan.model,
        cluster=plan.cluster,
        strategy=pool.strategy.model_copy(update={"instances": 1}),
        options=plan.options,
        num_workers=pool.strategy.instances,
        calibration=calibration,
        release=release,
        workload=plan.workload,
    )


def _release(plan: Plan, calibration: Calibration) -> EngineRelease:
    """Return what the plan's engine adds: fitted where its runs were measured on such devices, else as assumed."""
    architecture = plan.cluster.device.architecture
    family = next((each for each in load_serving().families if architecture in each.architectures), None)
    known = [] if family is None else [each.engine for each in family.releases]
    if family is not None and plan.engine in known and plan.calibration is None:
        return family.newest_release(plan.engine)
    engine = calibration.engines[plan.engine]
    return EngineRelease(
        engine=plan.engine,
        mixes_prefill=True,
        kernel_slowdown=1.0,
        step_overhead_s=engine.step_overhead_s,
        op_gap_s=0.0,
        eager_gap_s=0.0,
        moe_layer_gap_s=0.0,
        sequence_overhead_s=0.0,
        interference=1.0,
        request_overhead_s=engine.request_overhead_s,
        concurrency_overhead_s=0.0,
        prefill_slowdown=1.0,
        data_parallel_slowdown=1.0,
        wait=1.0,
        burst=0.0,
        burst_growth=0.0,
        basis=engine.basis,
        source=engine.source,
    )
