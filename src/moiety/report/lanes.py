"""Lanes: the rows of the comprehensive drawing, one for each GPU, or one for many GPUs that do the same."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moiety.graph.graph import Graph
    from moiety.plan import Plan, Pool

MAX_DRAWN_GPUS = 256
"""Up to this many GPUs of a plan, each has a lane of its own."""
_WIDE_NODE = 64
_NODES_DRAWN = 4
_NODES_OF_ALL = 24
"""About so many nodes are drawn GPU by GPU when others are folded."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Consecutive global ranks that are drawn in one row; more than one: folded."""

    first_rank: int
    num_gpus: int
    stages: tuple[int, ...]
    """Pipeline stages of these ranks."""
    band: int
    """Number of the band in its pool."""
    like: str = ""
    """What these ranks do the same as, e.g. `node 3`; empty where they are drawn themselves."""

    @property
    def last_rank(self) -> int:
        """The last of the ranks."""
        return self.first_rank + self.num_gpus - 1

    @property
    def is_folded(self) -> bool:
        """Whether it stands for several GPUs."""
        return self.num_gpus > 1

    @property
    def ranks(self) -> str:
        """The ranks, e.g. `17` or `32-1023`."""
        return str(self.first_rank) if self.num_gpus == 1 else f"{self.first_rank}-{self.last_rank}"


def pool_lanes(plan: Plan, pool: Pool, graph: Graph) -> tuple[Lane, ...]:
    """Return the lanes of a pool, in the order of their ranks.

    In plans of more than `MAX_DRAWN_GPUS` GPUs nodes of equal content are folded behind the first ones of their kind.
    """
    runs = _whole(pool) if plan.num_gpus <= MAX_DRAWN_GPUS else _folded(plan, pool, graph)
    lanes: list[Lane] = []
    previous: tuple[int, int, tuple[int, ...]] | None = None
    band = -1
    for first, count, like in runs:
        stages = stages_of(pool, first, count)
        place = (plan.cluster.node_of(first), -1 if count == 1 else first, stages)
        band += place != previous
        previous = place
        lanes.append(Lane(first, count, stages, band, like))
    return tuple(lanes)


def lane_of(lanes: tuple[Lane, ...], rank: int) -> int:
    """Return the number of the lane that holds a global rank."""
    return bisect_right(lanes, rank, key=lambda lane: lane.first_rank) - 1


def number_ranges(numbers: Iterable[int], most: int = 6) -> str:
    """Return numbers as ranges, e.g. `0-7, 12`; past `most` ranges, how many numbers there are instead."""
    ordered = sorted(set(numbers))
    if not ordered:
        return ""
    starts = [at for at, number in enumerate(ordered) if at == 0 or number != ordered[at - 1] + 1]
    parts: list[str] = []
    for start, stop in zip(starts, [*starts[1:], len(ordered)], strict=True):
        low, high = ordered[start], ordered[stop - 1]
        parts.append(str(low) if low == high else f"{low}-{high}")
    if len(parts) > most:
        return f"{', '.join(parts[: most - 1])}, ... ({len(ordered)} in all)"
    return ", ".join(parts)


def _whole(pool: Pool) -> list[tuple[int, int, str]]:
    return [(rank, 1, "") for rank in range(pool.first_rank, pool.first_rank + pool.num_gpus)]


def _folded(plan: Plan, pool: Pool, graph: Graph) -> list[tuple[int, int, str]]:
    """Return (first rank, count, like what) of each lane.

    Further instances share a lane; so do further stages of equal content, and further nodes of a stage. A lane never
    holds a part of one stage and of another: what one sends the other would then be drawn as a circle.
    """
    strategy, node = pool.strategy, plan.cluster.gpus_per_node
    instances = min(-(-node // strategy.gpus_per_instance), strategy.instances)
    shown = min(-(-node // strategy.gpus_per_stage), strategy.pp)
    runs = [list(run) for _, run in groupby(range(strategy.pp), key=_stage_contents(graph).__getitem__)]
    keep = max(1, min(_NODES_DRAWN, _NODES_OF_ALL // (instances * sum(min(shown, len(run)) for run in runs))))
    lanes: list[tuple[int, int, str]] = []
    for instance in range(instances):
        first = pool.first_rank + instance * strategy.gpus_per_instance
        for run in runs:
            drawn = run if len(run) <= shown + 1 else run[:shown]
            for stage in drawn:
                low = first + stage * strategy.gpus_per_stage
                lanes += _stage_lanes(plan, low, low + strategy.gpus_per_stage, keep)
            if len(drawn) < len(run):
                low = first + run[shown] * strategy.gpus_per_stage
                lanes.append((low, (len(run) - shown) * strategy.gpus_per_stage, f"stage {drawn[-1]}"))
    if instances < strategy.instances:
        low = pool.first_rank + instances * strategy.gpus_per_instance
        like = "instance 0" if instances == 1 else f"instances 0-{instances - 1}"
        lanes.append((low, pool.first_rank + strategy.num_gpus - low, like))
    return lanes


def _stage_lanes(plan: Plan, first: int, end: int, keep: int) -> list[tuple[int, int, str]]:
    """Return the lanes of one stage: its first `keep` nodes GPU by GPU, the others in one lane."""
    units = _units(first, end, plan.cluster.gpus_per_node)
    shown = units if len(units) <= keep + 1 else units[:keep]
    lanes = [(rank, 1, "") for low, count in shown for rank in range(low, low + count)]
    if len(shown) < len(units):
        low = units[keep][0]
        lanes.append((low, end - low, f"node {plan.cluster.node_of(low - 1)}"))
    return lanes


def _units(first: int, end: int, node: int) -> list[tuple[int, int]]:
    """Return (first rank, count) of the part of each node, or of eight GPUs where nodes are very wide."""
    step = node if node <= _WIDE_NODE else 8
    bounds = sorted({first, end, *range(-(-first // step) * step, end, step)})
    return [(low, high - low) for low, high in pairwise(bounds)]


def _stage_contents(graph: Graph) -> list[tuple[bool, bool, tuple[tuple[int, int], ...]]]:
    """Return what makes stages alike: whether they are the first or the last, and how many layers of which kind."""
    last = len(graph.stages) - 1
    return [
        (stage == 0, stage == last, tuple(sorted(Counter(map(graph.block_of, layers)).items())))
        for stage, layers in enumerate(graph.stages)
    ]


def _stage_of(pool: Pool, rank: int) -> int:
    strategy = pool.strategy
    return (rank - pool.first_rank) % strategy.gpus_per_instance // strategy.gpus_per_stage


def stages_of(pool: Pool, first: int, count: int) -> tuple[int, ...]:
    """Return the pipeline stages of `count` ranks from the global rank `first` on."""
    size = pool.strategy.gpus_per_stage
    inside = (first - pool.first_rank) % size
    low, high = _stage_of(pool, first), (inside + count - 1) // size
    return tuple(sorted({(low + step) % pool.strategy.pp for step in range(min(high + 1, pool.strategy.pp))}))
