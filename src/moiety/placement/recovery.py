"""Experts on other GPUs than before: what each takes on when some are gone, are to go, or have come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.placement.problem import Loads, SlotMap

    Mask = NDArray[np.bool_]

EMPTY = -1
"""A slot that holds no expert, or nobody knows which."""
_DIGITS = 12
"""Of a share of a layer's load: what differs beyond is what sums in another order differ by."""


class Fill(NamedTuple):
    """One slot that gets an expert."""

    layer: int
    """Row of the slot map."""
    gpu: int
    slot: int
    """Of the GPU."""
    expert: int
    source: int | None
    """GPU that holds a copy; None: the checkpoint."""


@dataclass(frozen=True, slots=True, eq=False)
class Recovery:
    """A slot map on the GPUs that go on, and how it is reached."""

    slot_map: SlotMap
    """[layers, GPUs, slots of a GPU]; `EMPTY` throughout on GPUs that hold nothing."""
    fills: tuple[Fill, ...]
    """Those that bring back a lost expert before those that add a copy; hot ones first."""
    lost: tuple[tuple[int, int], ...]
    """(layer, expert) that no slot is left for, or that neither a GPU nor the checkpoint has."""


def recover(
    slot_map: SlotMap,
    taking: Mask,
    shares: Loads,
    *,
    most_slots: int,
    slots: int | None = None,
    sources: Mask | None = None,
    checkpoint: bool = True,
) -> Recovery:
    """Return a map in which the GPUs `taking` [GPUs] hold every expert that can be held, with few copies made.

    `slot_map` is [layers, GPUs, slots], `shares` [layers, experts] the experts' shares of the work. What a GPU that
    goes on holds stays, unless it is one copy of several and a lost expert needs the place. GPUs get more slots only
    where the experts would not fit otherwise, at most `most_slots`. Lost experts go, the hottest first, to the GPU with
    the least load after it, of equal ones to that which has got fewest in the layers so far, since all wait for who is
    last; they come from that GPU of `sources` (those that take, unless told) which has given fewest, or else from the
    checkpoint. Slots that are left get copies of what weighs most on the fullest GPU.

    An expert is lost only where GPUs x slots are fewer than experts (the coldest are), or where nobody has it.
    """
    layers, gpus, before = slot_map.shape
    least = before if slots is None else slots
    readable = taking if sources is None else sources
    num_experts = shares.shape[1]
    count = int(taking.sum())
    size = min(max(least, -(-num_experts // count)), max(most_slots, least)) if count else least
    after = np.full((layers, gpus, size), EMPTY, dtype=np.int64)
    after[:, taking, :before] = slot_map[:, taking, :size]
    fills: list[list[tuple[int, Fill]]] = []
    lost: list[tuple[int, int]] = []
    got, given = np.zeros(gpus, dtype=np.int64), np.zeros(gpus, dtype=np.int64)
    for layer in range(layers):
        holders = _holders(slot_map[layer], readable, num_experts)
        work = _Layer(layer, after[layer], taking, shares[layer], holders, got, given)
        lost += [(layer, expert) for expert in work.bring_back(checkpoint=checkpoint)]
        brought = len(work.fills)
        work.add_copies()
        fills.append([(int(at >= brought), fill) for at, fill in enumerate(work.fills)])
    ordered = sorted((fill for layer in fills for fill in layer), key=lambda each: each[0])
    return Recovery(after, tuple(fill for _, fill in ordered), tuple(lost))


def _holders(rows: SlotMap, readable: Mask, num_experts: int) -> Mask:
    """Return who can give which expert, [experts, GPUs], from the slots of a layer, [GPUs, slots]."""
    held = np.zeros((num_experts + 1, len(rows)), dtype=np.bool_)
    held[rows, np.arange(len(rows), dtype=np.int64)[:, None]] = True  # EMPTY is the last row
    return held[:-1] & readable


@dataclass(slots=True, eq=False)
class _Layer:
    """One layer's slots, [GPUs, slots], changed in place."""

    layer: int
    rows: SlotMap
    taking: Mask
    share: Loads
    holders: Mask
    """Who can give which expert, [experts, GPUs]."""
    got: SlotMap
    """Lost experts that each GPU gets, of this layer and those before, [GPUs]."""
    given: SlotMap
    """Experts that each gives."""
    fills: list[Fill] = field(default_factory=list[Fill])

    def bring_back(self, *, checkpoint: bool) -> list[int]:
        """Give each expert without a copy a slot, the hottest first; return those that get none, by number."""
        missing = np.flatnonzero(self._copies() == 0)
        known = missing if checkpoint else missing[self.holders[missing].any(axis=1)]
        lost = sorted(set(missing.tolist()) - set(known.tolist()))
        for expert in known[np.argsort(-self.share[known], kind="stable")].tolist():
            place = self._place()
            if place is None:
                lost.append(expert)
            else:
                self._fill(*place, expert)
                self.got[place[0]] += 1
        return sorted(lost)

    def add_copies(self) -> None:
        """Fill empty slots, on the GPU with least load first, with what weighs most on the fullest GPU."""
        while True:
            free = (self.rows == EMPTY) & self.taking[:, None]
            if not free.any():
                return
            copies = self._copies()
            loads = self._loads(copies)
            gpu = int(np.where(free.any(axis=1), loads, np.inf).argmin())
            known = copies > 0
            lacking = known.copy()
            lacking[self.rows[gpu][self.rows[gpu] != EMPTY]] = False
            wanted = np.flatnonzero(lacking if lacking.any() else known)  # a second copy keeps the map whole
            if not len(wanted):
                return
            fullest = np.zeros(len(self.share) + 1)
            np.maximum.at(fullest, self.rows, np.where(self.taking, loads, 0.0)[:, None])
            per_copy = self.share[wanted] / copies[wanted]
            best = np.lexsort((wanted, -per_copy, -fullest[wanted]))[0]
            self._fill(gpu, int(free[gpu].argmax()), int(wanted[best]))

    def _fill(self, gpu: int, slot: int, expert: int) -> None:
        givers = np.flatnonzero(self.holders[expert])
        source = None if not len(givers) else int(givers[self.given[givers].argmin()])
        if source is not None:
            self.given[source] += 1
        self.fills.append(Fill(self.layer, gpu, slot, expert, source))
        given_up = self.rows[gpu, slot]
        self.rows[gpu, slot] = expert
        self.holders[expert, gpu] = True
        if given_up != EMPTY:
            self.holders[given_up, gpu] = bool((self.rows[gpu] == given_up).any())

    def _place(self) -> tuple[int, int] | None:
        """Return where an expert without a copy goes: least load after it, empty slots before copies of others."""
        copies = self._copies()
        held = np.maximum(self.rows, 0)
        spare = np.where(self.rows == EMPTY, 0.0, self.share[held] / np.maximum(copies[held], 1))
        usable = ((self.rows == EMPTY) | (copies[held] > 1)) & self.taking[:, None]
        if not usable.any():
            return None
        given_up = np.where(usable, spare, np.inf)
        slot = given_up.argmin(axis=1)  # the copy that weighs least; an empty slot weighs nothing
        least = given_up.min(axis=1)
        after = np.where(np.isfinite(least), self._loads(copies) - np.where(np.isfinite(least), least, 0.0), np.inf)
        empty = (self.rows == EMPTY).any(axis=1) & self.taking
        gpu = int(np.lexsort((self.got, ~empty, np.round(after, _DIGITS)))[0])
        return gpu, int(slot[gpu])

    def _copies(self) -> SlotMap:
        """Return the copies of each expert, [experts]."""
        return np.bincount(self.rows[self.rows != EMPTY], minlength=len(self.share))

    def _loads(self, copies: SlotMap) -> Loads:
        """Return the load of each GPU, [GPUs], copies sharing equally."""
        held = np.maximum(self.rows, 0)
        each = np.where(self.rows == EMPTY, 0.0, self.share[held] / np.maximum(copies[held], 1))
        return np.where(self.taking, each.sum(axis=1), np.inf)
