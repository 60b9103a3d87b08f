"""From a plan to what the control plane looks after: one instance of a pool, its experts, links and clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moiety.control.energy import limit_choice
from moiety.control.policy import ClockPoint, Deployment
from moiety.cost.price import Pricer
from moiety.errors import InputError
from moiety.graph.graph import build_step_graph
from moiety.graph.op import Gemm, MemoryPass
from moiety.placement.migration.cost import CopyLinks
from moiety.projection.project import judge_pool, project_pool
from moiety.projection.scenario import scenario_of

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.control.energy import LimitChoice
    from moiety.placement.problem import SlotMap
    from moiety.plan import Plan, Pool
    from moiety.projection.scenario import Scenario

CLOCK_SHARES = tuple(share / 100 for share in range(100, 49, -2))
"""Of the highest clock, highest first: those that are weighed. Below half of it memory does not keep its pace."""


def pool_of(plan: Plan) -> Pool:
    """Return the pool that balance, nodes and clocks are decided for: the one that decodes, else the first.

    Raises InputError for a model without experts, and for pipeline stages.
    """
    pool = next((each for each in plan.pools if each.role in {"decode", "mixed"}), plan.pools[0])
    placement = pool.placement
    if placement is None:
        raise InputError("has no experts to look after", source=plan.name, field="model", value=plan.model.name)
    if pool.strategy.pp > 1:
        rule = "the control plane does not look after pipeline stages"
        remedy = "plan with a --strategy without pp"
        raise InputError(rule, source=plan.name, field="strategy", value=pool.strategy.name, remedy=remedy)
    return pool


def slot_map_of(pool: Pool) -> SlotMap:
    """Return the experts of the slots of one instance, [MoE layers, slots]."""
    assert pool.placement is not None, "`pool_of` gives pools with experts"
    return np.array(pool.placement.physical_to_logical_map, dtype=np.int64)


def deployment_of(plan: Plan, calibration: Calibration) -> Deployment:
    """Return one instance of the plan's pool as a deployment; raise InputError for plans that cannot be looked after.

    Every figure is the planner's own: time and power of a step at each clock, bytes of an expert, bandwidths, memory
    that is left for more slots.
    """
    pool = pool_of(plan)
    placement, strategy = pool.placement, pool.strategy
    assert placement is not None, "`pool_of` gives pools with experts"
    scenario = scenario_of(plan, calibration)
    phase = judge_pool(scenario, pool, plan.options, timing="simulated")
    memory, width = phase.memory, placement.slots_per_rank
    slot_bytes = memory.bytes_by_kind["expert_weights"] / width
    free = max(memory.capacity_bytes - memory.total_bytes, 0)
    ranks, shared = placement.num_expert_ranks, placement.expert_tp
    ranks_per_node = max(ranks // placement.num_nodes, 1)
    return Deployment(
        num_ranks=ranks,
        ranks_per_node=ranks_per_node,
        num_experts=placement.num_logical_experts,
        num_layers=len(placement.layers),
        most_slots=width + int(free // slot_bytes),
        links=_links(scenario, slot_bytes / len(placement.layers)),
        layer_step_s=_layer_step_s(scenario, pool, plan),
        step_s=phase.step_s,
        phase=pool.role,
        gpus_per_rank=shared,
        group_ranks=max(strategy.tp // shared, 1),
        tokens_per_s_per_node=phase.throughput_tokens_per_s / pool.num_gpus * ranks_per_node * shared,
        tpot_s=phase.tpot_s,
        tpot_limit_s=plan.workload.slo.tpot_s,
        clock_points=clock_points(plan, pool, calibration),
    )


def clock_points(plan: Plan, pool: Pool, calibration: Calibration) -> tuple[ClockPoint, ...]:
    """Return the step's seconds and watts of a GPU at each of `CLOCK_SHARES` of the highest clock, highest first.

    The plan is evaluated with the matrix peaks of that clock; memory and links keep their pace (`cost/power.py`).
    """
    device = plan.cluster.device
    points: list[ClockPoint] = []
    for share in CLOCK_SHARES:
        peaks = {dtype: peak * share for dtype, peak in device.peak_flops_per_s.items()}
        slower = device.model_copy(update={"peak_flops_per_s": peaks})
        cluster = plan.cluster.model_copy(update={"device": slower})
        scenario = scenario_of(plan.model_copy(update={"cluster": cluster}), calibration)
        projection = project_pool(
            scenario, pool, judge_pool(scenario, pool, plan.options, timing="simulated"), clock_share=share
        )
        points.append(ClockPoint(share * device.max_clock_hz, projection.step_s, projection.power_w_per_gpu))
    return tuple(points)


def limit_choices(plan: Plan, calibration: Calibration, most_slowdown: float) -> tuple[LimitChoice, ...]:
    """Return what each pool of the plan is to run at, under the workload's objective."""
    scenario = scenario_of(plan, calibration)
    slo = plan.workload.slo
    choices: list[LimitChoice] = []
    for pool in plan.pools:
        outcome = judge_pool(scenario, pool, plan.options, timing="simulated")
        prefill = pool.role == "prefill"
        choices.append(
            limit_choice(
                clock_points(plan, pool, calibration),
                pool.role,
                most_slowdown,
                latency_s=outcome.ttft_s if prefill else outcome.tpot_s,
                latency_limit_s=slo.ttft_s if prefill else slo.tpot_s,
            )
        )
    return tuple(choices)


def _links(scenario: Scenario, expert_bytes: float) -> CopyLinks:
    cluster = scenario.cluster
    outer = min(1, len(cluster.tiers) - 1)
    return CopyLinks(expert_bytes, cluster.bandwidth_per_gpu(0), cluster.bandwidth_per_gpu(outer))


def _layer_step_s(scenario: Scenario, pool: Pool, plan: Plan) -> float:
    """Return what one more mean load adds to the routed experts' ops of a MoE layer, all micro-batches."""
    training = pool.role == "training"
    graph = build_step_graph(scenario.model, pool.strategy, pool.schedule, plan.options, training=training)
    laws = scenario.calibration.model_copy(update={"tables": None})  # tables may end between the two loads
    pricer = Pricer(graph, scenario.cluster, laws, pool.first_rank)
    seconds: list[float] = []
    for load in (1.0, 2.0):
        priced = pricer.priced_graph(load)
        ops = [each for layers in (priced.layers, priced.backward) for layer in layers for each in layer]
        seconds.append(sum(o.seconds for o in ops if isinstance(o.op.work, (Gemm, MemoryPass)) and o.op.work.experts))
    kinds = sum(block.moe is not None for block in scenario.model.blocks)
    return (seconds[1] - seconds[0]) / kinds * pool.schedule.num_microbatches
