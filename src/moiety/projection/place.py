"""Where the experts of a strategy live: by the plan's placement method, on what is known of the routing."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from moiety.cost.expert_traffic import stage_widths
from moiety.placement.linear import place_linear
from moiety.placement.stage_shape import StageShape
from moiety.projection.load import expert_share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.cluster.cluster import Cluster
    from moiety.model.feed_forward import MoeFeedForward
    from moiety.placement.placement import Placement
    from moiety.placement.serving.routed_traffic import MeasuredPlacement
    from moiety.plan import Options, PlacementMethod, Pool
    from moiety.projection.scenario import Scenario
    from moiety.strategy.strategy import Strategy
    from moiety.workload.routing import Routing

Effort = Literal["rank", "simulate", "plan"]
"""How much a placement may cost. `rank`: thousands of strategies, loads alone, by balance where the method is joint;
`simulate`: the best two dozen, by the method without its long search and a small sample of the trace; `plan`: the
chosen one."""

_MAX_SERVED: dict[Effort, int] = {"simulate": 100_000, "plan": 500_000}
"""(layer, token) of a trace whose copies are chosen one by one to measure the traffic."""


def place(
    scenario: Scenario, strategy: Strategy, options: Options, first_rank: int = 0, *, effort: Effort = "plan"
) -> Placement | None:
    """Return the placement of a strategy's experts on the GPUs of a stage, None for a model without experts.

    Where a trace of tokens is known the traffic of the map is measured on it. Without one a method sees only loads:
    measured shares, or the workload's law.
    """
    moe = scenario.model.moe
    if moe is None:
        return None
    shape = stage_shape(scenario, strategy, options, moe, first_rank)
    known = scenario.routing is not None and effort != "rank"
    if strategy.ep == 1 or (options.placement == "linear" and not known):
        return place_linear(
            layers=shape.layers,
            num_experts=shape.num_experts,
            redundant_experts=options.redundant_experts,
            num_gpus=shape.num_gpus,
            num_nodes=shape.num_nodes,
            expert_tp=shape.expert_tp,
        )
    from moiety.placement.solution import solved  # noqa: PLC0415 - planning without a dump needs no numpy

    method: PlacementMethod = options.placement
    if effort == "rank" and method == "joint":
        method = "balance"
    return solved(_routing(scenario), shape, method, _MAX_SERVED.get(effort), quick=effort != "plan")


def compared_methods(
    scenario: Scenario, strategy: Strategy, options: Options, first_rank: int = 0
) -> tuple[MeasuredPlacement, ...]:
    """Return what the trace makes of the methods that the plan's is shown beside; nothing without a trace."""
    moe = scenario.model.moe
    if moe is None or strategy.ep == 1 or scenario.routing is None:
        return ()
    from moiety.placement.solution import compared  # noqa: PLC0415 - as above

    return compared(scenario.routing, stage_shape(scenario, strategy, options, moe, first_rank), _MAX_SERVED["plan"])


def settled(scenario: Scenario, pools: Sequence[Pool], options: Options) -> tuple[Pool, ...]:
    """Return the pools with the placements of the plan's method, measured in full, and the other methods beside them.

    While strategies were ranked their experts may have been placed by a quicker method, or measured on fewer tokens.
    """
    found: list[Pool] = []
    for pool in pools:
        placement = place(scenario, pool.strategy, options, pool.first_rank)
        others = compared_methods(scenario, pool.strategy, options, pool.first_rank)
        found.append(pool.model_copy(update={"placement": placement, "measured": others}))
    return tuple(found)


def placed_again(
    scenario: Scenario, pools: Sequence[Pool], strategy: Strategy, options: Options, first_rank: int = 0
) -> Placement | None:
    """Return the placement of a strategy's experts under other options, with what is known from placing them before.

    A pool of the same shape keeps its map where the method is the same; the linear map keeps what the trace made of it.
    Anything else is placed anew: without the trace, its loads come from the measured shares and its traffic from the
    formula for uniform routing.
    """
    measured: MeasuredPlacement | None = None
    for pool in pools:
        held, same = pool.placement, pool.strategy
        if held is None or held.num_slots != held.num_logical_experts + options.redundant_experts:
            continue
        if _mesh(scenario.cluster, same, pool.first_rank) != _mesh(scenario.cluster, strategy, first_rank):
            continue
        if held.method == options.placement:
            return held
        measured = next((each for each in pool.measured if each.method == options.placement == "linear"), measured)
    if measured is None:
        return place(scenario, strategy, options, first_rank)
    linear = place(scenario, strategy, options, first_rank, effort="rank")
    return None if linear is None else linear.model_copy(update={"traffic": measured.traffic})


def _mesh(cluster: Cluster, strategy: Strategy, first_rank: int) -> tuple[object, ...]:
    """Return what two strategies must have in common for one placement to serve both alike."""
    widths = stage_widths(strategy, cluster, first_rank)
    return strategy.ep, strategy.etp, strategy.gpus_per_stage, widths


def stage_shape(
    scenario: Scenario, strategy: Strategy, options: Options, moe: MoeFeedForward, first_rank: int = 0
) -> StageShape:
    """Return the shape of a strategy's stages, in the domains of links that its GPUs lie in."""
    cluster, stage = scenario.cluster, strategy.gpus_per_stage
    node = cluster.gpus_per_node
    widths = _widths(cluster, strategy, first_rank)
    in_one = all(width % strategy.etp == 0 for width in widths)
    return StageShape(
        layers=tuple(i for i, block in enumerate(scenario.model.layers) if block.moe is not None),
        num_experts=moe.num_experts,
        num_slots=moe.num_experts + options.redundant_experts,
        num_gpus=stage,
        num_nodes=stage // node if stage > node and stage % node == 0 else 1,
        expert_tp=strategy.etp,
        domain_gpus=widths if in_one else None,
        num_groups=moe.num_groups if moe.top_k_groups < moe.num_groups else 1,
        domain_distance=_distances(cluster, strategy, first_rank) if in_one else None,
    )


def _widths(cluster: Cluster, strategy: Strategy, first_rank: int) -> tuple[int, ...]:
    """Return the domains of links inside a stage, the narrowest first."""
    widths = stage_widths(strategy, cluster, first_rank)
    return tuple(sorted({width for width in widths if width < strategy.gpus_per_stage}))


def _distances(cluster: Cluster, strategy: Strategy, first_rank: int) -> tuple[tuple[float, ...], ...] | None:
    """Return what a row costs between innermost domains: its time on the tier that joins them; the least is 1."""
    widths = stage_widths(strategy, cluster, first_rank)
    inner, stage = widths[0], strategy.gpus_per_stage
    slowest, costs = 0.0, dict[int, float]()
    for tier, width in enumerate(widths):
        if width > inner:
            slowest = max(slowest, 1 / cluster.bandwidth_per_gpu(tier))
            costs.setdefault(width, slowest)
    least = min(costs.values(), default=1.0)
    if max(costs.values(), default=least) <= least:
        return None
    joined = sorted(costs.items())

    def cost(one: int, other: int) -> float:
        if one == other:
            return 0.0
        return next(each for width, each in joined if one * inner // width == other * inner // width) / least

    domains = range(stage // inner)
    return tuple(tuple(cost(one, other) for other in domains) for one in domains)


def _routing(scenario: Scenario) -> Routing:
    """Return what is known of the routing, a row for each MoE layer."""
    if scenario.routing is not None:
        return scenario.routing
    moe = scenario.model.moe
    assert moe is not None, "only experts are routed to"
    return _counted(tuple(expert_share(scenario, row, moe.num_experts) for row in range(scenario.model.num_moe_layers)))


@lru_cache(maxsize=4)
def _counted(shares: tuple[tuple[float, ...], ...]) -> Routing:
    """Return shares as a routing without tokens."""
    import numpy as np  # noqa: PLC0415 - as above

    from moiety.workload.routing import Routing  # noqa: PLC0415 - as above

    return Routing(counts=np.array(shares)[None])
