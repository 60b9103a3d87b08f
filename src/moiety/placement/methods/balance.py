"""Our placement for balance alone: counts of copies, packing, and a bounded search over both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.placement.lower_bound import peak_lower_bound
from moiety.placement.methods.eplb import eplb_global
from moiety.placement.methods.linear_map import linear
from moiety.placement.methods.packing import SLACK, has_twins, pack
from moiety.placement.methods.replica_counts import least_peak_counts, nearby_counts
from moiety.placement.methods.round_robin import round_robin
from moiety.placement.metrics import gpu_loads

if TYPE_CHECKING:
    from moiety.placement.problem import Loads, PlacementProblem, SlotMap

_OPEN = 1e-3
"""A layer whose peak is further than this above the bound is searched for better counts."""
_ITEMS = 12_000
"""Copies that the search over counts may pack, all layers and tries together, at effort 1."""
_TRIES = 32
"""Counts that one step of the search tries for a layer."""
_STEPS = 8
_QUICK_ROUNDS = 12
"""Rounds of exchanges at effort 0, for a start that another search goes on from."""
_OFFSETS = (-0.5, -0.25, 0.25, 0.5)


@dataclass(frozen=True, slots=True, eq=False)
class _Best:
    """The best known answer of each layer."""

    counts: SlotMap
    """Copies of each expert, [layers, experts]."""
    slots: SlotMap
    """[layers, slots]"""
    peak: Loads
    """Load of the fullest GPU, over its speed, in its worst window, as a share of the layer's, [layers]."""


def balance(problem: PlacementProblem, effort: float = 1.0) -> SlotMap:
    """Return the map whose fullest GPU, in the worst window of each layer, is as light as a bounded search finds.

    No GPU holds two copies of an expert. It is never worse than the linear and round-robin maps, nor than EPLB's where
    that keeps copies apart. More `effort` searches longer where a layer stays above the bound; 0 packs quickly.
    """
    shares = problem.shares()
    order = np.lexsort(shares[::-1], axis=1)[:, ::-1]  # by load, so that experts' numbers do not matter
    layer = np.arange(problem.num_layers, dtype=np.int64)[:, None]
    ranked = shares[:, layer, order]
    counts = least_peak_counts(ranked.max(axis=0), problem.num_slots, problem.num_gpus)
    best = _packed(problem, ranked, counts, None if effort > 0 else _QUICK_ROUNDS)
    bound = peak_lower_bound(
        ranked, num_gpus=problem.num_gpus, num_slots=problem.num_slots, gpu_speed=problem.speed()
    ).max(axis=0)
    best = _search_counts(problem, ranked, best, bound, effort)
    return _not_worse_than_simple(problem, shares, order[layer, best.slots], best.peak, bound)


def peaks(problem: PlacementProblem, shares: Loads, slots: SlotMap) -> Loads:
    """Return the load of the fullest GPU over its speed in its worst window, [layers], of a map.

    `shares` [windows, layers, experts]; a perfect balance is 1 / gpus where each window's shares sum to 1.
    """
    return (gpu_loads(problem, slots, shares) / problem.speed()).max(axis=(0, 2))


def _packed(problem: PlacementProblem, shares: Loads, counts: SlotMap, rounds: int | None = None) -> _Best:
    """Return the packed map of given counts; `shares` [windows, layers, experts]."""
    layers, experts = counts.shape
    every = np.tile(np.arange(experts, dtype=np.int64), layers)
    expert = np.repeat(every, counts.reshape(-1)).reshape(layers, -1)
    layer = np.arange(layers, dtype=np.int64)[:, None]
    load = (shares / counts)[:, layer, expert]
    speed = None if problem.gpu_speed is None else problem.speed()
    where = pack(load, expert, problem.num_gpus, problem.slots_per_gpu, speed, rounds=rounds)
    slots = np.take_along_axis(expert, np.argsort(where, axis=1, kind="stable"), axis=1)
    return _Best(counts, slots, peaks(problem, shares, slots))


def _search_counts(problem: PlacementProblem, shares: Loads, best: _Best, bound: Loads, effort: float) -> _Best:
    """Try other counts for the layers furthest above the bound, while the allowance of packed copies lasts."""
    random = np.random.default_rng(0)
    worst = shares.max(axis=0)
    allowance = effort * _ITEMS
    for step in range(_STEPS if problem.num_gpus > 1 and problem.num_slots > problem.num_experts else 0):
        excess = best.peak / bound
        live = np.flatnonzero(excess > 1 + _OPEN)
        affordable = int(allowance // problem.num_slots)
        live = live[np.argsort(-excess[live], kind="stable")][: affordable // len(_OFFSETS)]
        if not len(live):
            break
        if step == 0:
            offsets = [
                least_peak_counts(worst[live], problem.num_slots, problem.num_gpus, offset) for offset in _OFFSETS
            ]
            tries = np.stack(offsets, axis=1)
        else:
            num_tries = min(_TRIES, affordable // len(live))
            heaviest = best.peak[live] * problem.speed().max()
            tries = nearby_counts(best.counts[live], worst[live], heaviest, problem.num_gpus, num_tries, random)
        best = _improved(problem, shares, best, live, tries)
        allowance -= tries.shape[0] * tries.shape[1] * problem.num_slots
    return best


def _improved(problem: PlacementProblem, shares: Loads, best: _Best, live: SlotMap, tries: SlotMap) -> _Best:
    """Return the better, layer by layer, of the best known and the `tries` [live, tries, experts] of the live ones."""
    num_tries = tries.shape[1]
    tried = _packed(problem, shares[:, np.repeat(live, num_tries)], tries.reshape(-1, tries.shape[2]))
    first = tried.peak.reshape(-1, num_tries).argmin(axis=1) + np.arange(len(live), dtype=np.int64) * num_tries
    won = tried.peak[first] < best.peak[live]
    layer, source = live[won], first[won]
    counts, slots, peak = best.counts.copy(), best.slots.copy(), best.peak.copy()
    counts[layer], slots[layer], peak[layer] = tried.counts[source], tried.slots[source], tried.peak[source]
    return _Best(counts, slots, peak)


def _not_worse_than_simple(
    problem: PlacementProblem, shares: Loads, slots: SlotMap, peak: Loads, bound: Loads
) -> SlotMap:
    """Return the map with a simple method's row wherever that has a lower peak, and keeps copies apart."""
    if not (peak > bound * (1 + SLACK)).any():
        return slots
    slots, peak = slots.copy(), peak.copy()
    for simple in (eplb_global(problem), linear(problem), round_robin(problem)):
        height = peaks(problem, shares, simple)
        apart = ~has_twins(simple.reshape(problem.num_layers, problem.num_gpus, -1))
        better = apart & (height < peak * (1 - 1e-12))
        slots[better], peak[better] = simple[better], height[better]
    return slots
