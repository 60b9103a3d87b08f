"""The tasks of one step: every stage, micro-batch, layer and op, on compute streams and link queues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.cost.price import already_gathered
from moiety.sim.engine import Task
from moiety.sim.op_list import FOREGROUND, OpList, op_list
from moiety.sim.step_tasks import Place, StepTasks
from moiety.sim.units import interleaved_units, stage_units

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moiety.cost.price import OpPrice, PricedGraph
    from moiety.graph.graph import Graph
    from moiety.sim.op_list import ListedOp
    from moiety.sim.units import Unit


@dataclass(frozen=True, slots=True)
class RankClass:
    """Ranks of every stage that do the same work: one stands for all `num_ranks` of them."""

    name: str
    num_ranks: int
    prices: tuple[PricedGraph, ...]
    """Per layer of the model: its ops priced at this class's load in that layer (equal objects are shared)."""


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
        self._behind = (0, 0)
        """Transfers, and exchanges among them, that the unit has behind it."""
        self._background: dict[int, tuple[int, ...]] = {}
        """Per stage: gradient reductions, which nothing but the update waits for."""
        self._listed: dict[tuple[int, ...], tuple[OpList, object]] = {}
        """By the lists' identities: what they come to, and themselves, so that no other list gets their identity."""
        self._regathered: dict[int, tuple[tuple[OpPrice, ...], tuple[OpPrice, ...]]] = {}
        """Likewise backward passes of layers whose parameters are there already."""

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
        return [forward, [self._gathered(each) for each in backward]]

    def _gathered(self, backward: tuple[OpPrice, ...]) -> tuple[OpPrice, ...]:
        if id(backward) not in self._regathered:
            self._regathered[id(backward)] = already_gathered(backward), backward
        return self._regathered[id(backward)][0]

    def _list(self, per_class: Sequence[Sequence[OpPrice]]) -> OpList:
        key = tuple(id(each) for each in per_class)
        if key not in self._listed:
            self._listed[key] = op_list(per_class, chunked=self._chunked), tuple(per_class)
        return self._listed[key][0]

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
        listed = self._list(per_class)
        made: list[list[tuple[int, ...]]] = [[] for _ in per_class]
        """By class, in the order of the list: the tasks that end an op."""
        pair, member = self._turn
        transfers, exchanges = self._behind
        for index, op in enumerate(listed.ops):
            place = Place(pair, member, transfers + op.transfers, exchanges + op.exchanges, self._position + index)
            ready = [_waits_for(op, ends, after, earlier) for ends in made]
            if op.is_joint:
                everyone = tuple(dict.fromkeys(task for waits in ready for task in waits))
                lane = stage * self._out.num_classes
                gate = self._out.add(Task("gate", 0.0, (), everyone, FOREGROUND), lane, -2, microbatch, place)
                ready = [(gate,)] * len(ready)
            for which, ends in enumerate(made):
                lane = stage * self._out.num_classes + which
                ends.append(self._lay_op(op, which, ready[which], lane, layer, microbatch, place))
        self._position += len(listed.ops)
        self._behind = transfers + listed.transfers, exchanges + listed.exchanges
        background = tuple(task for ends in made for index in listed.background for task in ends[index])
        self._background[stage] = self._background.get(stage, ()) + background
        return tuple(task for ends in made for index in listed.ends for task in ends[index]) or after

    def _lay_op(
        self,
        op: ListedOp,
        which: int,
        after: tuple[int, ...],
        lane: int,
        layer: int,
        microbatch: int,
        place: Place,
    ) -> tuple[int, ...]:
        """Append the tasks of an op and return those that end it."""
        out, (legs, priority, is_parallel) = self._out, op.work[which]
        ends, chain = (), after
        for stream, seconds, chunks in legs:
            resource = (out.resource(lane, stream),)
            head = after if is_parallel else chain
            for _ in range(chunks):
                head = (out.add(Task(op.name, seconds, resource, head, priority), lane, layer, microbatch, place),)
            chain = head
            ends = (*ends, *head) if is_parallel else head
        return ends


def _waits_for(
    op: ListedOp, made: Sequence[tuple[int, ...]], after: tuple[int, ...], earlier: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the tasks that an op waits for, when `made` are those that end the ops before it."""
    if op.is_prefetch:
        return earlier
    inputs = tuple(task for each in op.inputs for task in made[each])
    return (*inputs, *after) if op.is_first else inputs


def _all_prices(graphs: Sequence[PricedGraph]) -> Iterator[OpPrice]:
    for graph in {id(each): each for each in graphs}.values():
        for ops in (*graph.layers, *graph.backward, graph.embedding, graph.head, graph.boundary, graph.update):
            yield from ops
