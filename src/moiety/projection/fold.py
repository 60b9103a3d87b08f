"""A step from what one layer of each kind adds to it, instead of layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from moiety.cost.price import already_gathered
from moiety.graph.op import Collective
from moiety.projection.estimate import layer_times, link_seconds
from moiety.sim.step import RankClass
from moiety.sim.timeline import simulate_step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moiety.cost.price import OpPrice, PricedGraph
    from moiety.graph.graph import Graph


@dataclass(frozen=True, slots=True)
class _Added:
    """What the passes of one micro-batch (or of the pair that overlaps) through a layer add to a step."""

    seconds: float
    exposed_s: float
    moving_s: float
    link_s: tuple[float, ...]
    """Per tier, the background included."""


def fold(
    graph: Graph,
    loads: tuple[float, ...],
    priced: Mapping[float, PricedGraph],
    checkpointed: frozenset[int],
    *,
    sampled: bool,
) -> tuple[float, float, float, float]:
    """Return (step_s, steady_s, exposed fraction, overlap fraction) of the ranks with `loads` in the layers.

    Micro-batches beyond the pair that overlaps repeat it; pipeline stages add (p - 1) units to m (Huang et al. 2019), a
    v-th of them where stages work on v parts in turns, which send v times as often.
    Gradients are reduced in the background and in the pipeline's bubbles: the step is no shorter than the transfers on
    the busiest tier. Layers are `sampled` by simulating a few, or timed in closed form. Micro-batches that may overlap
    may also follow each other, where that is quicker.
    """
    schedule = graph.layout.schedule
    if not graph.layout.options.two_batch_overlap or schedule.num_microbatches == 1:
        return _fold(graph, loads, priced, checkpointed, 1, sampled=sampled)
    paired = _fold(graph, loads, priced, checkpointed, 2, sampled=sampled)
    if graph.layout.training:
        return paired
    return min(paired, _fold(graph, loads, priced, checkpointed, 1, sampled=sampled))


def _fold(
    graph: Graph,
    loads: tuple[float, ...],
    priced: Mapping[float, PricedGraph],
    checkpointed: frozenset[int],
    pair: int,
    *,
    sampled: bool,
) -> tuple[float, float, float, float]:
    """Return the same with micro-batches that run in pairs (`pair` 2) or one after the other."""
    schedule, stages = graph.layout.schedule, len(graph.stages)
    units = schedule.num_microbatches / pair
    first = priced[loads[0]]
    known: dict[tuple[int, float, bool], _Added] = {}
    held: list[list[_Added]] = []
    block_of = graph.model.layer_blocks
    for stage in graph.stages:
        held.append([])
        for layer in stage:
            key = (block_of[layer], loads[layer], layer in checkpointed)
            if key not in known:
                known[key] = _added(graph, priced[key[1]], key[0], pair, recomputed=key[2], sampled=sampled)
            held[-1].append(known[key])
    per_stage = [sum(each.seconds for each in layers) for layers in held]
    per_stage[0] += pair * _seconds(first.embedding)
    per_stage[-1] += pair * _seconds(first.head)
    sent = (2 if graph.backward else 1) * _seconds(first.boundary)
    parts = len(graph.pieces) // stages
    pipeline_s = units * max(per_stage) + (sum(per_stage) - max(per_stage)) / parts + (len(graph.pieces) - 1) * sent
    links_s = units * max(
        (sum(tier) for layers in held for tier in zip_longest(*(each.link_s for each in layers), fillvalue=0.0)),
        default=0.0,
    )
    if parts > 1:
        links_s += units * parts * sent
    step_s = max(pipeline_s, links_s) + _seconds(first.update)
    moving = sum(each.moving_s for layers in held for each in layers)
    exposed = min(max(sum(each.exposed_s for layers in held for each in layers), 0.0), moving)
    waiting = max(links_s - pipeline_s, 0.0)
    return (
        step_s,
        units * max(per_stage) if stages > 1 else step_s,
        (exposed / stages * units + waiting) / step_s,
        1 - exposed / moving if moving else 1.0,
    )


def _seconds(prices: tuple[OpPrice, ...]) -> float:
    return sum(price.seconds for price in prices)


def _added(graph: Graph, priced: PricedGraph, block: int, pair: int, *, recomputed: bool, sampled: bool) -> _Added:
    """Return what a layer of a kind adds."""
    passes = layer_passes(priced, block, recomputed=recomputed)
    links = tuple(pair * seconds for seconds in link_seconds(passes))
    reduced = _without_reductions(priced)
    if not sampled:
        passes = layer_passes(reduced, block, recomputed=recomputed)
        return _Added(*layer_times(passes, overlapped=pair > 1), links)
    short, long = (_sample(graph, pair, reduced, block, count, recomputed=recomputed) for count in (2, 4))
    seconds, exposed, moving = ((more - less) / 2 for more, less in zip(long, short, strict=True))
    return _Added(seconds, exposed, max(moving, 0.0), links)


def layer_passes(priced: PricedGraph, block: int, *, recomputed: bool) -> list[tuple[OpPrice, ...]]:
    """Return the op lists that a micro-batch runs in a layer of a kind; parameters stay gathered after recomputing."""
    forward = priced.layers[block]
    if not priced.backward:
        return [forward]
    backward = priced.backward[block]
    return [forward, forward, already_gathered(backward)] if recomputed else [forward, backward]


def _without_reductions(priced: PricedGraph) -> PricedGraph:
    """Return the prices without the transfers that no later op waits for."""
    backward = tuple(
        tuple(p for p in ops if not (isinstance(p.op.work, Collective) and p.op.work.bulk and not p.op.prefetch))
        for ops in priced.backward
    )
    return replace(priced, backward=backward)


def _sample(
    graph: Graph, pair: int, priced: PricedGraph, block: int, count: int, *, recomputed: bool
) -> tuple[float, float, float]:
    """Return (time, exposed, communication) of `count` layers of a kind on one stage."""
    model = graph.model.model_copy(update={"layer_blocks": (block,) * count})
    schedule = graph.layout.schedule.model_copy(update={"num_microbatches": pair})
    layout = replace(graph.layout, schedule=schedule)
    prices = replace(
        priced, graph=replace(graph, model=model, layout=layout, stages=(range(count),), pieces=(range(count),))
    )
    ranks = [RankClass("busiest", 1, (prices,) * count)]
    timeline = simulate_step(ranks, frozenset(range(count) if recomputed else ()))
    return timeline.makespan_s, timeline.exposed_s[0], timeline.communication_s[0]
