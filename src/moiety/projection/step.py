"""One step of a pool, timed in one of three ways: in closed form, by a few layers of each kind, or layer by layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from moiety.cost.price import Pricer
from moiety.graph.graph import build_step_graph
from moiety.graph.op import Collective
from moiety.projection.estimate import layer_times
from moiety.projection.load import load_classes
from moiety.sim.step import RankClass
from moiety.sim.timeline import simulate_step

if TYPE_CHECKING:
    from moiety.cost.price import OpPrice, PricedGraph
    from moiety.graph.graph import Graph
    from moiety.placement.placement import Placement
    from moiety.plan import Options, Schedule
    from moiety.projection.load import LoadClass
    from moiety.projection.scenario import Scenario
    from moiety.sim.timeline import Timeline
    from moiety.strategy.strategy import Strategy


Timing = Literal["estimated", "folded", "simulated"]
"""In closed form; two and four layers of each kind simulated and the rest by their share; every layer simulated."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step takes and moves."""

    graph: Graph
    step_s: float
    """From the first op to the last."""
    steady_s: float
    """Time between two steps when one follows the other through the pipeline without a gap."""
    exposed_fraction: float
    overlap_fraction: float
    memory_traffic_bytes: float
    """Bytes that the memory of a GPU moves in a step, averaged over the stages."""
    cross_node_bytes_per_token: float
    timeline: Timeline | None


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
    pricer = Pricer(graph, scenario.cluster, scenario.calibration, first_rank)
    classes = classes or load_classes(scenario, strategy, schedule, placement)
    priced: dict[float, PricedGraph] = {}
    for each in classes if timing == "simulated" else classes[:1]:
        for load in set(each.loads):
            key = round(load, 4)
            if key not in priced:
                priced[key] = pricer.priced_graph(key)
    if timing != "simulated":
        step_s, exposed, overlap = _folded(graph, classes[0], priced, checkpointed, timing)
        timeline = None
    else:
        ranks = [
            RankClass(c.name, c.num_expert_ranks * strategy.etp, tuple(priced[round(load, 4)] for load in c.loads))
            for c in classes
        ]
        timeline = simulate_step(ranks, checkpointed)
        step_s, exposed, overlap = timeline.makespan_s, timeline.exposed_fraction, timeline.overlap_fraction
    microbatches, stages = schedule.num_microbatches, strategy.pp
    return StepOutcome(
        graph=graph,
        step_s=step_s,
        steady_s=step_s * microbatches / (microbatches + stages - 1),
        exposed_fraction=exposed,
        overlap_fraction=overlap,
        memory_traffic_bytes=_memory_traffic(graph),
        cross_node_bytes_per_token=_cross_node_bytes(graph, priced[round(classes[0].loads[0], 4)]),
        timeline=timeline,
    )


def _folded(
    graph: Graph,
    busiest: LoadClass,
    priced: dict[float, PricedGraph],
    checkpointed: frozenset[int],
    timing: Timing,
) -> tuple[float, float, float]:
    """Return (step_s, exposed fraction, overlap fraction) from what a layer of each kind adds to a step.

    Micro-batches beyond the pair that overlaps repeat it; pipeline stages add (p - 1) units to m (Huang et al. 2019).
    """
    schedule, stages = graph.layout.schedule, len(graph.stages)
    pair = 2 if graph.layout.options.two_batch_overlap and schedule.num_microbatches > 1 else 1
    first = next(iter(priced.values()))
    ends = pair * sum(p.seconds for p in (*first.embedding, *first.head))
    added: dict[tuple[int, float, bool], tuple[float, float, float]] = {}
    per_stage: list[float] = []
    exposed = moving = 0.0
    for stage in graph.stages:
        total = ends / stages
        for layer in stage:
            key = (graph.block_of(layer), round(busiest.loads[layer], 4), layer in checkpointed)
            if key not in added:
                time = _estimated if timing == "estimated" else _sampled
                added[key] = time(graph, priced[key[1]], layer, pair, recomputed=key[2])
            total += added[key][0]
            exposed += added[key][1]
            moving += added[key][2]
        per_stage.append(total)
    units = schedule.num_microbatches / pair
    sent = sum(p.seconds for p in first.boundary) if stages > 1 else 0.0
    update = sum(p.seconds for p in first.update)
    ideal = sum(per_stage)
    step_s = ideal + (units - 1) * max(per_stage) + (stages - 1) * sent + update
    exposed, moving = min(max(exposed, 0.0), max(moving, 0.0)), max(moving, 0.0)
    return step_s, exposed / stages * units / step_s, 1 - exposed / moving if moving else 1.0


def _estimated(
    graph: Graph, priced: PricedGraph, layer: int, pair: int, *, recomputed: bool
) -> tuple[float, float, float]:
    """Return (time, exposed, communication) that a layer adds, in closed form."""
    block = graph.block_of(layer)
    passes = [priced.layers[block]] * (2 if recomputed else 1)
    passes += [priced.backward[block]] if priced.backward else []
    parts = [layer_times(prices, overlapped=pair > 1) for prices in passes]
    return sum(p[0] for p in parts), sum(p[1] for p in parts), sum(p[2] for p in parts)


def _sampled(
    graph: Graph, priced: PricedGraph, layer: int, pair: int, *, recomputed: bool
) -> tuple[float, float, float]:
    """Return (time, exposed, communication) that a layer adds: half of what four of its kind take more than two."""
    short, long = (_sample(graph, pair, priced, layer, count, recomputed=recomputed) for count in (2, 4))
    return (long[0] - short[0]) / 2, (long[1] - short[1]) / 2, (long[2] - short[2]) / 2


def _sample(  # noqa: PLR0913 - a sample is named by these
    graph: Graph, pair: int, priced: PricedGraph, layer: int, count: int, *, recomputed: bool
) -> tuple[float, float, float]:
    """Return (time, exposed, communication) of `count` layers like `layer` on one stage."""
    block = graph.block_of(layer)
    model = graph.model.model_copy(update={"layer_blocks": (block,) * count})
    schedule = graph.layout.schedule.model_copy(update={"num_microbatches": pair})
    layout = replace(graph.layout, schedule=schedule)
    short = replace(graph, model=model, layout=layout, stages=(range(count),))
    prices = replace(priced, graph=short)
    timeline = simulate_step([RankClass("busiest", 1, (prices,) * count)], frozenset(range(count) if recomputed else ()))
    return timeline.makespan_s, timeline.exposed_s[0], timeline.communication_s[0]


def _memory_traffic(graph: Graph) -> float:
    total = sum(op.memory_bytes for op in (*graph.embedding, *graph.head))
    for block, count in Counter(graph.model.layer_blocks).items():
        ops = (*graph.layers[block], *(graph.backward[block] if graph.backward else ()))
        total += count * sum(op.memory_bytes for op in ops)
    per_microbatch = total / len(graph.stages)
    return per_microbatch * graph.layout.schedule.num_microbatches + sum(op.memory_bytes for op in graph.update)


def _cross_node_bytes(graph: Graph, priced: PricedGraph) -> float:
    """Return bytes that leave the fast domain for each token: of every transfer of the forward pass but bulk ones."""
    tokens = graph.layout.tokens
    per_block = [sum(_outside(p) for p in ops) for ops in priced.layers]
    total = sum(per_block[block] for block in graph.model.layer_blocks)
    total += sum(_outside(p) for p in (*priced.embedding, *priced.head))
    total += sum(_outside(p) for p in priced.boundary) * (len(graph.stages) - 1)
    return total * graph.layout.strategy.tp / tokens if tokens else 0.0


def _outside(price: OpPrice) -> float:
    work = price.op.work
    if price.transfer is None or not isinstance(work, Collective) or work.bulk:
        return 0.0
    return sum(price.transfer.tier_bytes[1:])
