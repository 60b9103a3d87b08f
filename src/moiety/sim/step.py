"""The tasks of one step: every stage, micro-batch, layer and op, on compute streams and link queues."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from moiety.cost.price import already_gathered
from moiety.graph.op import Collective
from moiety.sim.engine import Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moiety.cost.price import OpPrice, PricedGraph
    from moiety.graph.graph import Graph

BULK_CHUNK_S = 100e-6
"""Longest time that a bulk transfer holds a link while something more urgent waits."""
MAX_BULK_CHUNKS = 1_000
"""Most chunks of one transfer: over a link too slow for its work they are longer, so that the step stays countable."""
_FOREGROUND, _BULK = 0, 1


@dataclass(frozen=True, slots=True)
class RankClass:
    """Ranks of every stage that do the same work: one stands for all `num_ranks` of them."""

    name: str
    num_ranks: int
    prices: tuple[PricedGraph, ...]
    """Per layer of the model: its ops priced at this class's load in that layer (equal objects are shared)."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A forward or backward pass of one micro-batch through one stage."""

    direction: Literal["forward", "backward"]
    microbatch: int
    part: int = 0
    """Which part of the stage's layers."""


class Place(NamedTuple):
    """Where a task stands among those of its stage."""

    pair: int
    """Number of the pair of units that overlap (of the unit, where none do)."""
    member: int
    """Which of the two units."""
    transfers: int
    """Foreground transfers of the unit that it comes behind, one after the other."""
    exchanges: int
    """Those of them that move tokens between attention groups: dispatch, combine and their kin."""
    position: int
    """Number of the op in its unit."""


@dataclass(slots=True)
class StepTasks:
    """Tasks with what the timeline needs to know of each: parallel lists."""

    num_stages: int
    num_classes: int
    num_tiers: int
    tasks: list[Task] = field(default_factory=list[Task])
    lanes: list[int] = field(default_factory=list[int])
    """Stage x class that the task belongs to."""
    layers: list[int] = field(default_factory=list[int])
    """Layer of the model; -1 outside the layers."""
    microbatches: list[int] = field(default_factory=list[int])
    places: list[Place] = field(default_factory=list[Place])
    overlaps: bool = False
    """Whether two units of a stage run at a time."""

    def launch_orders(self) -> list[list[int]]:
        """Return the orders in which streams and links may be fed: for each, every task's number.

        A stream does what it was given in the order it was given, so a faster machine is never slower under one order,
        nor under the best of several that do not depend on the machine. Two units that overlap take turns at every
        transfer, at exchanges only, or not at all.
        """
        keys = [[(place.pair, 0, place.member, place.position) for place in self.places]]
        if self.overlaps:
            keys.append([(place.pair, place.transfers, place.member, place.position) for place in self.places])
            keys.append([(place.pair, place.exchanges, place.member, place.position) for place in self.places])
        orders: list[list[int]] = []
        for key in keys:
            order = [0] * len(key)
            for number, index in enumerate(sorted(range(len(key)), key=key.__getitem__)):
                order[index] = number
            orders.append(order)
        return orders

    def makespan_s(self, start_s: Sequence[float]) -> float:
        """Return when the last task ends that starts at these times."""
        return max((start + task.duration_s for start, task in zip(start_s, self.tasks, strict=True)), default=0.0)

    def resource(self, lane: int, stream: int) -> int:
        """Return the number of a lane's compute stream (0) or of its link on tier `stream - 1`."""
        return lane * (1 + self.num_tiers) + stream

    @property
    def num_resources(self) -> int:
        """Resources of all lanes."""
        return self.num_stages * self.num_classes * (1 + self.num_tiers)


def stage_units(stage: int, num_stages: int, num_microbatches: int, *, training: bool) -> list[Unit]:
    """Return the order in which a stage works: forward only, or one-forward-one-backward (Narayanan et al. 2021)."""
    forward = [Unit("forward", m) for m in range(num_microbatches)]
    if not training:
        return forward
    backward = [Unit("backward", m) for m in range(num_microbatches)]
    warm_up = min(num_stages - stage - 1, num_microbatches)
    units = forward[:warm_up]
    for index in range(num_microbatches - warm_up):
        units += [forward[warm_up + index], backward[index]]
    return units + backward[num_microbatches - warm_up :]


def interleaved_units(stage: int, num_stages: int, num_microbatches: int, parts: int) -> list[Unit]:
    """Return the order in which a stage trains whose layers are `parts` pieces of the model, in turns.

    As Megatron-LM does (Narayanan et al. 2021, section 2.2): groups of as many micro-batches as there are stages go
    through one part after the other; a stage is ahead by twice its distance from the last, and by a group for each
    further part. Micro-batches are a multiple of the stages.
    """
    group = num_stages * parts
    order = [
        ((index % group) // num_stages, index // group * num_stages + index % num_stages)
        for index in range(num_microbatches * parts)
    ]
    forward = [Unit("forward", microbatch, part) for part, microbatch in order]
    backward = [Unit("backward", microbatch, parts - 1 - part) for part, microbatch in order]
    warm_up = min(2 * (num_stages - stage - 1) + (parts - 1) * num_stages, len(order))
    units = forward[:warm_up]
    for index in range(len(order) - warm_up):
        units += [forward[warm_up + index], backward[index]]
    return units + backward[len(order) - warm_up :]


class StepBuilder:
    """Lays out one step as tasks."""

    def __init__(self, classes: Sequence[RankClass], checkpointed: frozenset[int] = frozenset()) -> None:
        self._classes = classes
        self._graph: Graph = classes[0].prices[0].graph
        self._checkpointed = checkpointed
        layout = self._graph.layout
        self._overlaps = layout.options.two_batch_overlap and layout.schedule.num_microbatches > 1
        self._chunked = layout.options.priority_scheduling
        tiers = max((len(p.transfer.tier_seconds) for p in _all_prices(classes[0].prices) if p.transfer), default=1)
        self._out = StepTasks(len(self._graph.stages), len(classes), tiers, overlaps=self._overlaps)
        """Of the model's pieces, by direction and micro-batch: the tasks that end them."""
        self._done: dict[tuple[int, str, int], tuple[int, ...]] = {}
        self._sent: dict[tuple[int, str, int], tuple[int, ...]] = {}
        self._turn = (0, 0)
        """The pair of units that is laid, and which of the two."""
        self._position = 0
        """Ops that the unit has behind it."""
        self._behind: tuple[int, ...] = (0, 0)
        """Transfers, and exchanges among them, that the unit has behind it."""
        self._place = Place(0, 0, 0, 0, 0)
        self._background: dict[int, tuple[int, ...]] = {}
        """Per stage: gradient reductions, which nothing but the update waits for."""

    def build(self) -> StepTasks:
        """Return the tasks of the step, in an order that respects their dependencies."""
        graph = self._graph
        stages, microbatches = len(graph.stages), graph.layout.schedule.num_microbatches
        parts = len(graph.pieces) // stages
        orders = [
            interleaved_units(s, stages, microbatches, parts)
            if parts > 1
            else stage_units(s, stages, microbatches, training=graph.layout.training)
            for s in range(stages)
        ]
        cursor = [0] * stages
        while any(cursor[s] < len(orders[s]) for s in range(stages)):
            moved = False
            for stage in range(stages):
                while cursor[stage] < len(orders[stage]) and self._can_lay(stage, orders[stage][cursor[stage]]):
                    self._lay_unit(stage, orders[stage], cursor[stage])
                    cursor[stage] += 1
                    moved = True
            assert moved, "the stages' orders wait for each other"
        if graph.layout.training:
            for stage in range(stages):
                held = range(stage, len(graph.pieces), stages)
                last = tuple(t for m in range(microbatches) for piece in held for t in self._done[piece, "backward", m])
                last += self._background.get(stage, ())
                self._lay(stage, [c.prices[0].update for c in self._classes], last, last, -1, 0)
        return self._out

    def _can_lay(self, stage: int, unit: Unit) -> bool:
        piece = self._piece(stage, unit)
        if unit.direction == "forward":
            return piece == 0 or (piece - 1, "forward", unit.microbatch) in self._done
        last = piece == len(self._graph.pieces) - 1
        return last or (piece + 1, "backward", unit.microbatch) in self._done

    def _piece(self, stage: int, unit: Unit) -> int:
        """Return the number of the model's piece that a unit goes through."""
        return unit.part * len(self._graph.stages) + stage

    def _lay_unit(self, stage: int, order: list[Unit], position: int) -> None:
        unit, window = order[position], 2 if self._overlaps else 1
        self._turn, self._position, self._behind = divmod(position, window), 0, (0, 0)
        piece, pieces, classes = self._piece(stage, unit), len(self._graph.pieces), self._classes
        after: tuple[int, ...] = ()
        if position >= window:
            before = order[position - window]
            after = self._done[self._piece(stage, before), before.direction, before.microbatch]
        layers: Sequence[int] = self._graph.pieces[piece]
        if unit.direction == "forward":
            if piece:
                after += self._sent[piece - 1, "forward", unit.microbatch]
            else:
                after = self._lay(stage, [c.prices[0].embedding for c in classes], after, after, -1, unit.microbatch)
        else:
            after += self._done[piece, "forward", unit.microbatch]
            if piece < pieces - 1:
                after += self._sent[piece + 1, "backward", unit.microbatch]
            layers = range(layers[-1], layers[0] - 1, -1)
        earlier = after
        for layer in layers:
            for ops in self._passes(layer, unit.direction):
                ends = self._lay(stage, ops, after, earlier, layer, unit.microbatch)
                earlier, after = after, ends
        if unit.direction == "forward" and piece == pieces - 1:
            after = self._lay(stage, [c.prices[0].head for c in classes], after, after, -1, unit.microbatch)
        self._done[piece, unit.direction, unit.microbatch] = after
        onward = piece < pieces - 1 if unit.direction == "forward" else piece > 0
        if onward:
            boundary = [c.prices[0].boundary for c in classes]
            self._sent[piece, unit.direction, unit.microbatch] = self._lay(
                stage, boundary, after, after, -1, unit.microbatch
            )

    def _passes(self, layer: int, direction: str) -> list[list[tuple[OpPrice, ...]]]:
        """Return the op lists that a pass runs in a layer, per class: recomputed forward first, where checkpointed."""
        block = self._graph.block_of(layer)
        forward = [c.prices[layer].layers[block] for c in self._classes]
        if direction == "forward":
            return [forward]
        backward = [c.prices[layer].backward[block] for c in self._classes]
        if layer not in self._checkpointed:
            return [backward]
        return [forward, [already_gathered(each) for each in backward]]

    def _lay(
        self,
        stage: int,
        per_class: Sequence[Sequence[OpPrice]],
        after: tuple[int, ...],
        earlier: tuple[int, ...],
        layer: int,
        microbatch: int,
    ) -> tuple[int, ...]:
        """Append the ops of one list for every class and return the tasks that end it.

        Ops without inputs wait for `after`, prefetches for `earlier` (the start of the list before). Exchanges join all
        classes: they start when the last class is ready and last as long as the slowest needs. Bulk transfers that
        nothing in the list uses go on in the background.
        """
        ends: list[dict[str, tuple[int, ...]]] = [{} for _ in per_class]
        used: list[set[str]] = [set() for _ in per_class]
        depth: tuple[dict[str, int], dict[str, int]] = ({}, {})
        for index, first in enumerate(per_class[0]):
            op = first.op
            behind = [max((made[name] for name in op.inputs if name in made), default=0) for made in depth]
            self._place = Place(
                *self._turn, self._behind[0] + behind[0], self._behind[1] + behind[1], self._position + index
            )
            foreground = op.is_communication and not _is_bulk(first)
            depth[0][op.name] = behind[0] + foreground
            depth[1][op.name] = behind[1] + (foreground and _is_exchange(first))
            ready: list[tuple[int, ...]] = []
            for which in range(len(per_class)):
                used[which].update(() if _is_bulk(first) and not op.prefetch else op.inputs)
                inputs = tuple(t for name in op.inputs if name != "input" for t in ends[which][name])
                if op.prefetch:
                    inputs = earlier
                elif "input" in op.inputs or not op.inputs:
                    inputs = (*inputs, *after)
                ready.append(inputs)
            prices = [ops[index] for ops in per_class]
            joint = first.transfer is not None and first.transfer.pipelined and len(per_class) > 1
            if joint:
                slowest = max(prices, key=lambda each: each.seconds)
                everyone = tuple(dict.fromkeys(t for inputs in ready for t in inputs))
                gate = self._task("gate", 0.0, (), everyone, _FOREGROUND, stage, 0, -2, microbatch)
                ready, prices = [(gate,)] * len(prices), [slowest] * len(prices)
            for which, price in enumerate(prices):
                ends[which][op.name] = self._lay_op(price, ready[which], stage, which, layer, microbatch)
        self._position += len(per_class[0])
        self._behind = tuple(
            before + max(made.values(), default=0) for before, made in zip(self._behind, depth, strict=True)
        )
        unused = [
            (name, tasks)
            for which, by_name in enumerate(ends)
            for name, tasks in by_name.items()
            if name not in used[which]
        ]
        bulk = {price.op.name for price in per_class[0] if _is_bulk(price)}
        background = tuple(task for name, tasks in unused if name in bulk for task in tasks)
        self._background[stage] = self._background.get(stage, ()) + background
        return tuple(task for name, tasks in unused if name not in bulk for task in tasks) or after

    def _lay_op(
        self, price: OpPrice, after: tuple[int, ...], stage: int, which: int, layer: int, microbatch: int
    ) -> tuple[int, ...]:
        name, lane = price.op.name, stage * self._out.num_classes + which
        transfer = price.transfer
        if transfer is None:
            resource = (self._out.resource(lane, 0),)
            return (self._task(name, price.compute_s, resource, after, _FOREGROUND, stage, which, layer, microbatch),)
        bulk = _is_bulk(price)
        priority = _BULK if bulk else _FOREGROUND
        busy = [tier for tier, seconds in enumerate(transfer.tier_seconds) if seconds > 0] or [0]
        ends: tuple[int, ...] = ()
        chain = after
        for tier in busy:
            seconds = transfer.tier_seconds[tier]
            if tier == busy[-1]:
                # the outermost link waits for the start-up, and for the tiers that work at the same time
                seconds = (
                    transfer.seconds if transfer.pipelined else transfer.seconds - sum(transfer.tier_seconds[:tier])
                )
            resource = (self._out.resource(lane, 1 + tier),)
            pieces = min(max(math.ceil(seconds / BULK_CHUNK_S), 1), MAX_BULK_CHUNKS) if bulk and self._chunked else 1
            head = after if transfer.pipelined else chain
            for _ in range(pieces):
                task = self._task(name, seconds / pieces, resource, head, priority, stage, which, layer, microbatch)
                head = (task,)
            chain = head
            ends = (*ends, *head) if transfer.pipelined else head
        return ends

    def _task(  # noqa: PLR0913, PLR0917 - a task has this many parts
        self,
        name: str,
        seconds: float,
        resources: tuple[int, ...],
        after: tuple[int, ...],
        priority: int,
        stage: int,
        which: int,
        layer: int,
        microbatch: int,
    ) -> int:
        out = self._out
        out.tasks.append(Task(name, seconds, resources, after, priority))
        out.lanes.append(stage * out.num_classes + which)
        out.layers.append(layer)
        out.microbatches.append(microbatch)
        out.places.append(self._place)
        return len(out.tasks) - 1


def _is_bulk(price: OpPrice) -> bool:
    work = price.op.work
    return isinstance(work, Collective) and work.bulk


def _is_exchange(price: OpPrice) -> bool:
    work = price.op.work
    return isinstance(work, Collective) and work.axis in {"stage", "attn_dp"}


def _all_prices(graphs: Sequence[PricedGraph]) -> Iterator[OpPrice]:
    for graph in {id(each): each for each in graphs}.values():
        for ops in (*graph.layers, *graph.backward, graph.embedding, graph.head, graph.boundary, graph.update):
            yield from ops
