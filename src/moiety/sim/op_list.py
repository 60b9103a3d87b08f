"""A list of ops as it is laid out again and again: what is the same in every layer, stage and micro-batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from moiety.graph.op import Collective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.cost.price import OpPrice

BULK_CHUNK_S = 100e-6
"""Longest time that a bulk transfer holds a link while something more urgent waits."""
MAX_BULK_CHUNKS = 1_000
"""Most chunks of one transfer: over a link too slow for its work they are longer, so that the step stays countable."""
FOREGROUND, BULK = 0, 1
"""Priorities."""


class Leg(NamedTuple):
    """The part of an op's work that one stream or link does, in chunks one after the other."""

    stream: int
    """0: compute; else the link on tier `stream - 1`."""
    seconds: float
    """Of each chunk."""
    chunks: int


class Legs(NamedTuple):
    """An op's work on one class of ranks: at the same time, or one leg after the other."""

    legs: tuple[Leg, ...]
    priority: int
    is_parallel: bool


@dataclass(frozen=True, slots=True)
class ListedOp:
    """An op of a list, and how it stands among the others."""

    name: str
    inputs: tuple[int, ...]
    """Places in the list of the ops that it waits for."""
    is_prefetch: bool
    """Waits for the start of the list before instead."""
    is_first: bool
    """Waits for the end of the list before too."""
    transfers: int
    """Foreground transfers of the list that it comes behind, one after the other."""
    exchanges: int
    """Those of them that move tokens between attention groups."""
    is_joint: bool
    """Starts when all classes are ready, and takes as long as the slowest needs."""
    work: tuple[Legs, ...]
    """By class."""


@dataclass(frozen=True, slots=True)
class OpList:
    """The ops of a list, and what goes on where it ends."""

    ops: tuple[ListedOp, ...]
    ends: tuple[int, ...]
    """Places of the ops whose end is the list's: nothing in it uses them."""
    background: tuple[int, ...]
    """Likewise of bulk transfers, which the list does not wait for."""
    transfers: int
    """Foreground transfers from its begin to its end, one after the other."""
    exchanges: int


def op_list(per_class: Sequence[Sequence[OpPrice]], *, chunked: bool) -> OpList:
    """Return the list whose ops have these prices for each class of ranks; `chunked` divides bulk transfers."""
    places: dict[str, int] = {}
    behind: list[tuple[int, int]] = []
    """Of each op, itself included: transfers, exchanges."""
    used: set[int] = set()
    ops: list[ListedOp] = []
    for index, first in enumerate(per_class[0]):
        op = first.op
        inputs = tuple(places[name] for name in op.inputs if name != "input")
        transfers = max((behind[each][0] for each in inputs), default=0)
        exchanges = max((behind[each][1] for each in inputs), default=0)
        bulk = _is_bulk(first)
        foreground = op.is_communication and not bulk
        behind.append((transfers + foreground, exchanges + (foreground and _is_exchange(first))))
        if op.prefetch or not bulk:
            used.update(inputs)
        prices = [ops_of[index] for ops_of in per_class]
        joint = first.transfer is not None and first.transfer.pipelined and len(per_class) > 1
        if joint:
            prices = [max(prices, key=lambda each: each.seconds)] * len(prices)
        ops.append(
            ListedOp(
                name=op.name,
                inputs=inputs,
                is_prefetch=op.prefetch,
                is_first="input" in op.inputs or not op.inputs,
                transfers=transfers,
                exchanges=exchanges,
                is_joint=joint,
                work=tuple(_legs(price, chunked=chunked) for price in prices),
            )
        )
        places[op.name] = index
    unused = [index for index in range(len(ops)) if index not in used]
    bulk_ops = {index for index, price in enumerate(per_class[0]) if _is_bulk(price)}
    return OpList(
        ops=tuple(ops),
        ends=tuple(index for index in unused if index not in bulk_ops),
        background=tuple(index for index in unused if index in bulk_ops),
        transfers=max((each[0] for each in behind), default=0),
        exchanges=max((each[1] for each in behind), default=0),
    )


def _legs(price: OpPrice, *, chunked: bool) -> Legs:
    transfer = price.transfer
    if transfer is None:
        return Legs((Leg(0, price.compute_s, 1),), FOREGROUND, is_parallel=False)
    bulk = _is_bulk(price)
    busy = [tier for tier, seconds in enumerate(transfer.tier_seconds) if seconds > 0] or [0]
    legs: list[Leg] = []
    for tier in busy:
        seconds = transfer.tier_seconds[tier]
        if tier == busy[-1]:
            # the outermost link waits for the start-up, and for the tiers that work at the same time
            seconds = transfer.seconds if transfer.pipelined else transfer.seconds - sum(transfer.tier_seconds[:tier])
        chunks = min(max(math.ceil(seconds / BULK_CHUNK_S), 1), MAX_BULK_CHUNKS) if bulk and chunked else 1
        legs.append(Leg(1 + tier, seconds / chunks, chunks))
    return Legs(tuple(legs), BULK if bulk else FOREGROUND, is_parallel=transfer.pipelined)


def _is_bulk(price: OpPrice) -> bool:
    work = price.op.work
    return isinstance(work, Collective) and work.bulk


def _is_exchange(price: OpPrice) -> bool:
    work = price.op.work
    return isinstance(work, Collective) and work.axis in {"stage", "attn_dp"}
