"""Packing of activation buffers, whose lifetimes are known, into one arena."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

from moiety.graph.op import Collective
from moiety.plan import Arena, Buffer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moiety.cost.workspaces import Workspace, Workspaces
    from moiety.graph.graph import Graph
    from moiety.graph.op import Op

ALIGNMENT = 512
"""Bytes; the alignment of CUDA allocations."""


class Lifetime(NamedTuple):
    """A buffer with the first and last op (inclusive) between which it must keep its content."""

    name: str
    size_bytes: int
    first_op: int
    last_op: int


def layer_lifetimes(
    ops: Sequence[Op], input_bytes: int, *, interleaved: bool, beside: Iterable[Workspace] = ()
) -> list[Lifetime]:
    """Return the buffers of one layer of a forward pass; `interleaved` adds a second micro-batch half a layer behind.

    An op's output lives from the op to its last user; the layer's result lives to the end. `beside` is what ops take
    beside their outputs.
    """
    order = {op.name: index for index, op in enumerate(ops)}
    last_use: dict[str, int] = {}
    for index, op in enumerate(ops):
        for name in op.inputs:
            last_use[name] = index
    end = len(ops) - 1
    single = [Lifetime("input", aligned(input_bytes), 0, last_use.get("input", 0))]
    for op in ops:
        if op.output is not None and not (isinstance(op.work, Collective) and op.work.bulk):
            last = end if op is ops[-1] else last_use.get(op.name, order[op.name])
            single.append(Lifetime(op.name, aligned(op.output.size_bytes), order[op.name], last))
    single += [Lifetime(each.name, aligned(each.size_bytes), each.first_op, each.last_op) for each in beside]
    if not interleaved:
        return single
    lag = len(ops) // 2
    both = [Lifetime(f"{each.name}.a", each.size_bytes, each.first_op, each.last_op) for each in single]
    for each in single:
        if each.first_op + lag <= end:
            both.append(Lifetime(f"{each.name}.b", each.size_bytes, each.first_op + lag, min(each.last_op + lag, end)))
        if each.last_op - lag >= 0:
            # the tail of the same buffer one layer earlier
            both.append(Lifetime(f"{each.name}.b-", each.size_bytes, max(each.first_op - lag, 0), each.last_op - lag))
    return both


def live_peak(lifetimes: Iterable[Lifetime]) -> int:
    """Return the most bytes that live at once."""
    changes: dict[int, int] = {}
    for each in lifetimes:
        changes[each.first_op] = changes.get(each.first_op, 0) + each.size_bytes
        changes[each.last_op + 1] = changes.get(each.last_op + 1, 0) - each.size_bytes
    return max(itertools.accumulate(changes[moment] for moment in sorted(changes)), default=0)


def pack(lifetimes: Iterable[Lifetime]) -> list[Buffer]:
    """Return every buffer with an offset such that buffers that live together do not overlap.

    Each goes to the lowest offset that is free for its whole life, in one of several orders: by size (Pisarchyk and Lee
    2020), by size and length of life, by first use as an allocator would; the smallest outcome counts.
    """
    buffers = list(lifetimes)
    orders = (
        sorted(buffers, key=lambda b: (-b.size_bytes, b.first_op, b.name)),
        sorted(buffers, key=lambda b: (-b.size_bytes * (b.last_op - b.first_op + 1), b.first_op, b.name)),
        sorted(buffers, key=lambda b: (b.first_op, b.name)),
    )
    packed = min((_placed(order) for order in orders), key=_peak)
    return sorted(packed, key=lambda b: (b.offset_bytes, b.first_op, b.name))


def _placed(order: Sequence[Lifetime]) -> list[Buffer]:
    """Return the buffers at the lowest offsets that those before them in `order` leave free."""
    placed: list[Buffer] = []
    for each in order:
        offset = 0
        rivals = (b for b in placed if b.first_op <= each.last_op and each.first_op <= b.last_op)
        for rival in sorted(rivals, key=lambda b: b.offset_bytes):
            if offset + each.size_bytes <= rival.offset_bytes:
                break
            offset = max(offset, rival.offset_bytes + rival.size_bytes)
        placed.append(Buffer(**each._asdict(), offset_bytes=offset))
    return placed


def _peak(buffers: Iterable[Buffer]) -> int:
    return max((each.offset_bytes + each.size_bytes for each in buffers), default=0)


def first_fit_peak(lifetimes: Iterable[Lifetime]) -> int:
    """Return the peak of an allocator that sees one request at a time and takes the lowest gap that is wide enough."""
    return _peak(_placed(sorted(lifetimes, key=lambda b: (b.first_op, b.name))))


def graph_lifetimes(graph: Graph, workspaces: Workspaces | None = None) -> list[list[Lifetime]]:
    """Return the buffers of each kind of layer that the model has, of both micro-batches where two overlap.

    `workspaces` are what our run time takes beside, which computes the head in its arena, too: it comes last. None:
    kernels take weights and rows as they are.
    """
    layout = graph.layout
    interleaved = layout.options.two_batch_overlap and layout.schedule.num_microbatches > 1
    hidden = graph.embedding[-1].output
    assert hidden is not None, "the embedding has an output"
    kinds = sorted(set(graph.model.layer_blocks))
    layers = [
        layer_lifetimes(
            graph.layers[kind],
            hidden.size_bytes,
            interleaved=interleaved,
            beside=() if workspaces is None else workspaces.of_layer(kind),
        )
        for kind in kinds
    ]
    if workspaces is None:
        return layers
    head = layer_lifetimes(graph.head, hidden.size_bytes, interleaved=False, beside=workspaces.of_head())
    return [*layers, head]


def plan_arena(graph: Graph, workspaces: Workspaces | None = None) -> Arena:
    """Return the arena of what needs most, a kind of layer or the head; `workspaces` are as for `graph_lifetimes`."""
    lifetimes = max(graph_lifetimes(graph, workspaces), key=live_peak)
    buffers = pack(lifetimes)
    return Arena(
        buffers=tuple(buffers),
        peak_bytes=_peak(buffers),
        live_bytes=live_peak(lifetimes),
        unplanned_peak_bytes=first_fit_peak(lifetimes),
    )


def aligned(size_bytes: int) -> int:
    """Return the bytes that a buffer takes of an arena."""
    return math.ceil(size_bytes / ALIGNMENT) * ALIGNMENT
