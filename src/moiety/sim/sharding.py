"""Sharded dense parameters in a simulated step: what gathers and scatters move, and what of them nothing hides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.graph.op import Collective
from moiety.graph.sharding import is_sharding
from moiety.sim.timeline import common, length, merge

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moiety.graph.graph import Graph
    from moiety.graph.op import CollectiveKind, Op
    from moiety.sim.timeline import Timeline


@dataclass(frozen=True, slots=True)
class ShardingTime:
    """Seconds of a step, averaged over the GPUs."""

    transfer_s: float
    """In which parameters are gathered or gradients scattered."""
    exposed_s: float
    """In which the GPU does nothing else: it neither computes nor takes part in another transfer."""


def sharding_time(timeline: Timeline, graph: Graph) -> ShardingTime:
    """Return what sharding takes of a step that was simulated from `graph`; zeros where nothing is sharded."""
    names = {op.name for op in _ops(graph) if is_sharding(op)}
    steps = timeline.steps
    lanes = len(timeline.lane_weights)
    sharding: list[list[tuple[float, float]]] = [[] for _ in range(lanes)]
    other: list[list[tuple[float, float]]] = [[] for _ in range(lanes)]
    for task, start, lane in zip(steps.tasks, timeline.start_s, steps.lanes, strict=True):
        if task.resources:
            (sharding if task.name in names else other)[lane].append((start, start + task.duration_s))
    moving, busy = [merge(each) for each in sharding], [merge(each) for each in other]
    exposed = [length(one) - common(one, two) for one, two in zip(moving, busy, strict=True)]
    weights = timeline.lane_weights
    return ShardingTime(_mean([length(each) for each in moving], weights), _mean(exposed, weights))


def sharding_bytes(graph: Graph) -> tuple[int, int]:
    """Return the bytes that a GPU of a plan's only stage gathers in a step, and those whose sums it scatters.

    Of a gather the gathered tensor counts, of a scatter the one before it. Layers that compute again gather no more
    often than others: their parameters stay until the backward pass is through.
    """
    in_microbatch = [*graph.embedding, *graph.head]
    for block in graph.model.layer_blocks:
        in_microbatch += [*graph.layers[block], *(graph.backward[block] if graph.backward else ())]
    times = graph.layout.schedule.num_microbatches
    gathered = times * _payload(in_microbatch, "all_gather")
    return int(gathered), int(
        times * _payload(in_microbatch, "reduce_scatter") + _payload(graph.update, "reduce_scatter")
    )


def _payload(ops: Iterable[Op], kind: CollectiveKind) -> float:
    works = (op.work for op in ops if is_sharding(op))
    return sum(work.payload_bytes for work in works if isinstance(work, Collective) and work.kind == kind)


def _ops(graph: Graph) -> Iterable[Op]:
    for ops in (graph.embedding, *graph.layers, *graph.backward, graph.head, graph.update):
        yield from ops


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
