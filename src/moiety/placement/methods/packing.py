"""Packing copies of experts onto bins (GPUs) of equally many slots, so that the fullest bin is as light as can be.

The multiprocessor scheduling problem with a cardinality limit: a greedy start in the manner of LPT (Graham, "Bounds on
multiprocessing timing anomalies", 1969), then exchanges between pairs of bins until the fullest is near the mean, all
layers at once. Experts with a copy on both bins of a pair never move between them, so no bin comes to hold two copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from moiety.placement.problem import Loads, SlotMap

_ROUNDS = 32
"""Rounds of exchanges that a packing takes where it does not reach `SLACK` before ..."""
_BINS_PER_ROUND = 8
"""... and one more for each so many bins."""
SLACK = 1e-4
"""How far above the mean load the fullest bin may stay before more exchanges are tried."""
_MOST_MOVES = 128
"""Exchanges of more than one item are tried only while a pair of bins has at most so many."""
_MOST_SWAPS = 2048
"""Of the swaps of one item for another a seeded sample of so many is tried where there are more."""
_PARTNERS = ((0.1, 1), (0.35, 3), (0.6, 7), (1.0, 15))
"""How many bins each of the fullest may choose from, up to this part of the rounds: many small steps, then the best."""
_FORBIDDEN = np.float32(1e6)


@dataclass(slots=True)
class _Bins:
    """What each slot of each bin holds."""

    load: NDArray[np.float32]
    """Work of the item, in units of a layer's mean load of a bin, [windows, layers, bins, slots]."""
    expert: NDArray[np.int32]
    """[layers, bins, slots]"""
    item: SlotMap
    """Column of the item in what was given, [layers, bins, slots]."""
    speed: NDArray[np.float32] | None
    """Speed of each bin relative to the mean, [layers, bins]; None where all are alike."""

    def fullness(self, live: SlotMap) -> NDArray[np.float32]:
        """Return each bin's load over its speed in its worst window, [live layers, bins]."""
        load = self.load[:, live].sum(axis=3).max(axis=0)
        return load if self.speed is None else load / self.speed[live]


@dataclass(frozen=True, slots=True, eq=False)
class _Moves:
    """The exchanges between two bins of a pair; the first leaves all as it is."""

    change: NDArray[np.float32]
    """What the first bin of the pair gains of each slot: -1 given away, 1 received, [2 x slots, moves]."""
    moved: NDArray[np.float32]
    """Whether each slot's item moves, [2 x slots, moves]."""
    source: NDArray[np.int64]
    """The slot each slot's new item comes from, [moves, 2 x slots]."""


def pack(
    loads: Loads,
    experts: SlotMap,
    num_bins: int,
    slots_per_bin: int,
    speed: Loads | None = None,
    *,
    rounds: int | None = None,
    slack: float = SLACK,
) -> SlotMap:
    """Return the bin of each item, [layers, items], so that the fullest bin of the worst window is nearly lightest.

    `loads` [windows, layers, items] is the work of each item, `experts` [layers, items] the expert it is a copy of
    (at most `num_bins` items of a layer share one), items are `num_bins * slots_per_bin`. `speed` [bins] or
    [layers, bins] is the bins' relative speed. "Layers" are independent: the nodes of a layer may be such too.
    """
    _, layers, items = loads.shape
    assert items == num_bins * slots_per_bin, "as many items as slots"
    if num_bins == 1 or slots_per_bin == 0:
        return np.zeros((layers, items), dtype=np.int64)
    pace = None if speed is None else np.broadcast_to(speed, (layers, num_bins)).astype(np.float64)
    if pace is not None:
        pace = pace / pace.mean(axis=1, keepdims=True)
    mean = loads.sum(axis=2).max(axis=0) / num_bins
    scaled = loads / np.where(mean > 0, mean, 1.0)[:, None]
    item = _deal(scaled, experts, num_bins, slots_per_bin, pace)
    row = np.arange(layers, dtype=np.int64)[:, None, None]
    bins = _Bins(
        load=scaled[:, row, item].astype(np.float32),
        expert=experts[row, item].astype(np.int32),
        item=item,
        speed=None if pace is None else pace.astype(np.float32),
    )
    _exchange(bins, _ROUNDS + num_bins // _BINS_PER_ROUND if rounds is None else rounds, slack)
    where = np.empty((layers, items), dtype=np.int64)
    bin_of_slot = np.arange(items, dtype=np.int64) // slots_per_bin
    np.put_along_axis(where, bins.item.reshape(layers, items), bin_of_slot, axis=1)
    return where


def has_twins(experts: SlotMap) -> NDArray[np.bool_]:
    """Return which layers have a bin that holds two copies of an expert, [layers]; `experts` [layers, bins, slots]."""
    ordered = np.sort(experts, axis=2)
    return (ordered[:, :, 1:] == ordered[:, :, :-1]).any(axis=(1, 2))


def _deal(loads: Loads, experts: SlotMap, num_bins: int, slots: int, speed: Loads | None) -> SlotMap:
    """Return a start, [layers, bins, slots] of item columns: by turns, each turn's heaviest item to the emptiest bin.

    Where that puts two copies of an expert into one bin, a layer's items are dealt in a circle instead, copies of an
    expert one after the other: no bin gets two as long as there are no more copies than bins.
    """
    layers = experts.shape[0]
    row = np.arange(layers, dtype=np.int64)[:, None]
    total = loads.sum(axis=0)
    order = np.lexsort((experts, -total), axis=1)
    held = np.empty((layers, num_bins, slots), dtype=np.int64)
    filled = np.zeros((layers, num_bins))
    for turn in range(slots):
        emptiest = np.argsort(filled if speed is None else filled / speed, axis=1, kind="stable")
        dealt = order[:, turn * num_bins : (turn + 1) * num_bins]
        held[row, emptiest, turn] = dealt
        filled[row, emptiest] += total[row, dealt]
    twins = np.flatnonzero(has_twins(experts[row[:, :, None], held]))
    if len(twins):
        some = experts[twins]
        place = np.full((len(twins), int(some.max()) + 1), experts.shape[1])
        in_order = np.take_along_axis(some, order[twins], axis=1)
        position = np.arange(experts.shape[1], dtype=np.int64)
        np.minimum.at(place, (row[: len(twins)], in_order), position)
        by_expert = np.argsort(np.take_along_axis(place, some, axis=1), axis=1, kind="stable")
        held[twins] = by_expert.reshape(len(twins), slots, num_bins).transpose(0, 2, 1)
        assert not has_twins(experts[row[:, :, None], held]).any(), "no more copies than bins"
    return held


def _exchange(bins: _Bins, rounds: int, slack: float) -> None:
    """Improve the bins in place: in each round the fullest ones trade with the best of a few others each.

    A layer drops out when its fullest bin is within `slack` of the mean, or may choose from all others and gains from
    none. The others that a full bin may choose from are dealt anew in each round, by a seeded shuffle.
    """
    layers, num_bins, slots = bins.item.shape
    moves = _moves(slots)
    live = np.arange(layers, dtype=np.int64)
    for others, shuffle in _rounds(num_bins, rounds):
        peak = bins.fullness(live)
        going = peak.max(axis=1) > 1 + slack
        if not going.all():
            live, peak = live[going], peak[going]
        if not len(live):
            return
        by_fullness = np.argsort(-peak, axis=1, kind="stable")
        num_full = num_bins // (others + 1)
        fullest = by_fullness[:, :num_full]
        rest = by_fullness[:, num_full:][:, shuffle].reshape(len(live), num_full, others)
        moved = _trade(bins, moves, live, fullest, rest)
        if others == num_bins - 1:
            live = live[moved]


def _rounds(num_bins: int, rounds: int) -> Iterator[tuple[int, SlotMap]]:
    """Yield for each round how many others a full bin may choose from, and which of the rest those are."""
    random = np.random.default_rng(0)
    for index in range(rounds):
        others = next(width for until, width in _PARTNERS if index < until * rounds)
        others = min(others, num_bins - 1)
        num_full = num_bins // (others + 1)
        yield others, random.permutation(num_bins - num_full)[: num_full * others]


def _trade(bins: _Bins, moves: _Moves, live: SlotMap, fullest: SlotMap, rest: SlotMap) -> NDArray[np.bool_]:
    """Let each of the fullest bins make its best exchange with one of its `rest`, [live, fullest, others].

    Return which layers changed, [live].
    """
    slots = bins.item.shape[2]
    row, rows = live[:, None], live[:, None, None]
    expert_a, expert_b = bins.expert[row, fullest], bins.expert[rows, rest]
    peak = _peaks(bins, moves, live, fullest, rest)  # [live, fullest, others, moves]
    same = expert_a[:, :, None, :, None] == expert_b[:, :, :, None, :]
    shared = np.concatenate([same.any(axis=4), same.any(axis=3)], axis=3)
    where = np.nonzero(shared.any(axis=3))
    if len(where[0]):
        peak[where] += _FORBIDDEN * (shared[where].astype(np.float32) @ moves.moved)
    best = peak.argmin(axis=3)
    height = np.take_along_axis(peak, best[..., None], axis=3)[..., 0]
    other = height.argmin(axis=2)[..., None]
    move = np.take_along_axis(best, other, axis=2)[..., 0]
    partner = np.take_along_axis(rest, other, axis=2)[..., 0]
    pair = np.stack([fullest, partner], axis=2)
    source = moves.source[move].reshape(*pair.shape, slots)  # [live, fullest, 2, slots], of the pair's 2 x slots
    from_bin = np.take_along_axis(pair[..., None], source // slots, axis=2)
    to, back = (rows, pair), (live[:, None, None, None], from_bin, source % slots)
    bins.load[:, to[0], to[1]] = bins.load[:, back[0], back[1], back[2]]
    bins.expert[to] = bins.expert[back]
    bins.item[to] = bins.item[back]
    changed: NDArray[np.bool_] = np.any(move > 0, axis=1)
    return changed


def _peaks(bins: _Bins, moves: _Moves, live: SlotMap, fullest: SlotMap, rest: SlotMap) -> NDArray[np.float32]:
    """Return how full the fuller bin of each pair is in its worst window, [live, fullest, others, moves]."""
    slots = bins.item.shape[2]
    row, rows = live[:, None], live[:, None, None]
    worst: NDArray[np.float32] | None = None
    for load in bins.load:
        load_a, load_b = load[row, fullest], load[rows, rest]
        gain_a = (load_a.reshape(-1, slots) @ moves.change[:slots]).reshape(*fullest.shape, 1, -1)
        gain = (load_b.reshape(-1, slots) @ moves.change[slots:]).reshape(*rest.shape, -1)
        gain += gain_a
        full_a, full_b = load_a.sum(axis=2)[:, :, None, None], load_b.sum(axis=3)[..., None]
        if bins.speed is None:
            gain += (full_a - full_b) / 2
            peak = np.abs(gain, out=gain)
            peak += (full_a + full_b) / 2
        else:
            speed_a = bins.speed[row, fullest][:, :, None, None]
            speed_b = bins.speed[rows, rest][..., None]
            peak = np.maximum((full_a + gain) / speed_a, (full_b - gain) / speed_b)
        worst = peak if worst is None else np.maximum(worst, peak, out=worst)
    assert worst is not None, "at least one window"
    return worst


@lru_cache(maxsize=32)
def _moves(slots: int) -> _Moves:
    """Return the exchanges of `size` items for as many between two bins: all sizes while they are few, else size 1.

    For up to 5 slots a bin these are all ways to split the two bins' items, but for exchanging the bins' names.
    """
    chosen: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]
    for size in range(1, max(slots // 2, 1) + 1):
        if size > 1 and len(chosen) + comb(slots, size) ** 2 > _MOST_MOVES:
            break
        some = list(combinations(range(slots), size))
        pairs = [(give, take) for give in some for take in some]
        if len(pairs) > _MOST_SWAPS:
            kept = np.sort(np.random.default_rng(slots).choice(len(pairs), _MOST_SWAPS, replace=False))
            pairs = [pairs[int(index)] for index in kept]
        chosen += pairs
    change = np.zeros((2 * slots, len(chosen)), dtype=np.float32)
    source = np.tile(np.arange(2 * slots, dtype=np.int64), (len(chosen), 1))
    for index, (give, take) in enumerate(chosen):
        theirs = [slots + slot for slot in take]
        change[list(give), index] = -1
        change[theirs, index] = 1
        source[index, list(give)] = theirs
        source[index, theirs] = give
    return _Moves(change, np.abs(change), source)
