"""One step of a pool, timed in one of three ways: in closed form, by a few layers of each kind, or layer by layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from moiety.calibration.scheduling import hides_shared_experts
from moiety.cost.price import Pricer
from moiety.graph.feed_forward import moves_tokens, starts_shared_experts
from moiety.graph.graph import build_step_graph
from moiety.projection.coverage import coverage
from moiety.projection.fold import fold, layer_passes
from moiety.projection.load import load_classes
from moiety.sim.step import RankClass
from moiety.sim.timeline import simulate_step

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moiety.cost.price import OpPrice, PricedGraph
    from moiety.graph.graph import Graph
    from moiety.graph.op import Op
    from moiety.placement.placement import Placement
    from moiety.plan import Options, Schedule
    from moiety.projection.coverage import Coverage
    from moiety.projection.load import LoadClass
    from moiety.projection.scenario import Scenario
    from moiety.sim.timeline import Timeline
    from moiety.strategy.strategy import Strategy


Timing = Literal["estimated", "folded", "simulated"]
"""In closed form; two and four layers of each kind simulated and the rest by their share; every layer simulated.

The first two take the busiest rank's load in each kind of layer as its mean over those layers. All three take the
measured traffic of a placement as its mean over the MoE layers: an exchange takes time in proportion to its rows.
"""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step takes and moves."""

    graph: Graph
    step_s: float
    """From the first op to the last."""
    steady_s: float
    """Time between steps that follow each other without a gap through the pipeline: what the slowest stage takes."""
    exposed_fraction: float
    overlap_fraction: float
    memory_traffic_bytes: float
    """Bytes that the memory of a GPU moves in a step, averaged over the stages."""
    cross_node_bytes_per_token: float
    timeline: Timeline | None
    coverage: Coverage | None = None
    """What measured tables say of the step's ops; None where there are none."""


def time_step(  # noqa: PLR0913 - what decides a step
    scenario: Scenario,
    strategy: Strategy,
    schedule: Schedule,
    options: Options,
    placement: Placement | None,
    *,
    training: bool = False,
    first_rank: int = 0,
    timing: Timing = "simulated",
    checkpointed: frozenset[int] = frozenset(),
    classes: list[LoadClass] | None = None,
) -> StepOutcome:
    """Return the outcome of one step; `classes` replaces what the routing says of the ranks' loads (after a fault)."""
    graph = build_step_graph(scenario.model, strategy, schedule, options, training=training)
    return time_graph(
        scenario, graph, placement, first_rank=first_rank, timing=timing, checkpointed=checkpointed, classes=classes
    )


def time_graph(
    scenario: Scenario,
    graph: Graph,
    placement: Placement | None,
    *,
    first_rank: int = 0,
    timing: Timing = "simulated",
    checkpointed: frozenset[int] = frozenset(),
    classes: list[LoadClass] | None = None,
) -> StepOutcome:
    """Return the outcome of the step whose work is known already."""
    if not hides_shared_experts(scenario.engine):
        graph = _shared_experts_alone(graph)
    strategy, schedule = graph.layout.strategy, graph.layout.schedule
    traffic = placement.traffic if placement is not None else None
    pricer = Pricer(graph, scenario.cluster, scenario.calibration, first_rank, traffic, scenario.op_times)
    classes = classes or load_classes(scenario, strategy, schedule, placement)
    if timing != "simulated":
        classes = [_levelled(classes[0], scenario.model.layer_blocks)]
    priced: dict[float, PricedGraph] = {}
    for each in classes:
        for load in set(each.loads):
            key = round(load, 4)
            if key not in priced:
                priced[key] = pricer.priced_graph(key)
    if timing != "simulated":
        loads = tuple(round(load, 4) for load in classes[0].loads)
        step_s, steady_s, exposed, overlap = fold(graph, loads, priced, checkpointed, sampled=timing == "folded")
        timeline = None
    else:
        ranks = [
            RankClass(c.name, c.num_expert_ranks * strategy.etp, tuple(priced[round(load, 4)] for load in c.loads))
            for c in classes
        ]
        timeline = simulate_step(ranks, checkpointed)
        step_s, exposed, overlap = timeline.makespan_s, timeline.exposed_fraction, timeline.overlap_fraction
        steady_s = timeline.occupied_s if strategy.pp > 1 else step_s
    return StepOutcome(
        graph=graph,
        step_s=step_s,
        steady_s=steady_s,
        exposed_fraction=exposed,
        overlap_fraction=overlap,
        memory_traffic_bytes=_memory_traffic(graph),
        cross_node_bytes_per_token=_cross_node_bytes(graph, priced[round(classes[0].loads[0], 4)], checkpointed),
        timeline=timeline,
        coverage=coverage(graph, tuple(priced.values())) if scenario.calibration.tables else None,
    )


def _shared_experts_alone(graph: Graph) -> Graph:
    """Return the graph with no shared experts computed while tokens are on their way to the routed ones."""
    layers: list[tuple[Op, ...]] = []
    for ops in graph.layers:
        moving = tuple(op.name for op in ops if moves_tokens(op))
        layers.append(tuple(replace(op, inputs=op.inputs + moving) if starts_shared_experts(op) else op for op in ops))
    return replace(graph, layers=tuple(layers))


def _levelled(busiest: LoadClass, layer_blocks: tuple[int, ...]) -> LoadClass:
    """Return the class with the mean of its loads over all layers of a kind in each of them."""
    counts = Counter(layer_blocks)
    sums = dict.fromkeys(counts, 0.0)
    for block, load in zip(layer_blocks, busiest.loads, strict=True):
        sums[block] += load
    return replace(busiest, loads=tuple(sums[block] / counts[block] for block in layer_blocks))


def _memory_traffic(graph: Graph) -> float:
    total = sum(op.memory_bytes for op in (*graph.embedding, *graph.head))
    for block, count in Counter(graph.model.layer_blocks).items():
        ops = (*graph.layers[block], *(graph.backward[block] if graph.backward else ()))
        total += count * sum(op.memory_bytes for op in ops)
    per_microbatch = total / len(graph.stages)
    return per_microbatch * graph.layout.schedule.num_microbatches + sum(op.memory_bytes for op in graph.update)


def _cross_node_bytes(graph: Graph, priced: PricedGraph, checkpointed: frozenset[int]) -> float:
    """Return bytes that leave the fast domain in a step for each of its tokens, whatever the transfer.

    Of training all passes count, layers that compute again twice forward, and gradients that are reduced once a step.
    """
    layout = graph.layout
    kinds = Counter((graph.block_of(layer), layer in checkpointed) for layer in range(graph.model.num_layers))
    in_microbatch = sum(
        count * sum(_outside(ops) for ops in layer_passes(priced, block, recomputed=recomputed))
        for (block, recomputed), count in kinds.items()
    )
    in_microbatch += _outside(priced.embedding) + _outside(priced.head)
    handed_on = (len(graph.pieces) - 1) * (2 if layout.training else 1)
    in_microbatch += handed_on * _outside(priced.boundary)
    total = in_microbatch + _outside(priced.update) / layout.schedule.num_microbatches
    return total * layout.strategy.tp / layout.tokens if layout.tokens else 0.0


def _outside(prices: Iterable[OpPrice]) -> float:
    return sum(sum(price.transfer.tier_bytes[1:]) for price in prices if price.transfer is not None)
