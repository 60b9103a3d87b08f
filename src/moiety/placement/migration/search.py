"""The search for the best slot maps within 1, 2, ... changed slots of a previous one, all layers at once.

A beam search whose depth is the number of changed slots: an overwrite leads one level down, a swap two, and a change
of what has been moved already stays on its level, which spends the same moves differently. A level never looks at a
deeper one, so what is found with K moves does not depend on whether more were allowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.placement.migration.candidates import candidates, maps_of, smooth_peak, tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.placement.migration.candidates import MoveProblem
    from moiety.placement.problem import Loads, SlotMap

_BRANCHES = 6
"""Children of a map that may wait for a level."""
_WIDE_LEVELS = 8
"""Levels of full width: few moves must be chosen well, while many make up for each other. Deeper ones narrow ..."""
_LEAST_WIDTH = 3
"""... to no less than this."""
_PATIENCE = 12
"""Levels without a gain after which a layer is done."""
_BALANCED = 1 + 1e-4
"""A peak, relative to the mean, that needs no more moves."""
_LEAST_GAIN = 1e-9
_LEAST_UNIT = 1e-30


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """The best map found within each number of changed slots."""

    objective: Loads
    """Peak relative to the mean plus holding cost, [levels, layers]; never rises with the level."""
    slot_map: SlotMap
    """[levels, layers, slots]"""


@dataclass(frozen=True, slots=True, eq=False)
class _Children:
    """Maps that are one change away from those kept, each [layers, children]."""

    score: Loads
    """Smooth peak, estimated."""
    key: SlotMap
    """A hash of the map."""
    parent: SlotMap
    """Column of the map that is changed, among those kept of the last three levels."""
    slots: SlotMap
    """[layers, children, 2]"""
    experts: SlotMap
    """[layers, children, 2]"""

    def of_layers(self, chosen: NDArray[np.bool_]) -> _Children:
        """Return the children of some layers."""
        key, parent = self.key[chosen], self.parent[chosen]
        return _Children(self.score[chosen], key, parent, self.slots[chosen], self.experts[chosen])


@dataclass(slots=True, eq=False)
class _Beam:
    """The search's state over the layers that are not done yet; changed in place."""

    problem: MoveProblem
    previous: SlotMap
    width: int
    hashes: SlotMap
    """[slots, experts]"""
    best: Loads
    """Objective of the best map so far, [layers]."""
    best_map: SlotMap
    best_key: SlotMap
    kept: SlotMap
    """Maps of two levels up, one level up and this level, [layers, 3 x 2 x width, slots]."""
    keys: SlotMap
    """Their hashes, [layers, 3 x 2 x width]."""
    waiting: list[list[_Children]]
    """Of this level, the next and the one after."""


def best_within(problem: MoveProblem, previous: SlotMap, max_moves: int, width: int) -> Levels:
    """Return the best maps within 0, 1, ..., `max_moves` changed slots a layer of `previous` [layers, slots].

    `width` maps a level are kept, and as many that spend the same moves differently. The levels end early where all
    layers are balanced or have stopped gaining.
    """
    beam = _start(problem, previous, width)
    live = np.arange(len(previous), dtype=np.int64)
    objective, maps = [beam.best.copy()], [previous]
    stalled = np.zeros(len(previous), dtype=np.int64)
    _expand(beam, beam.kept[:, -2 * width : 1 - 2 * width], beam.keys[:, -2 * width : 1 - 2 * width], half=0)
    for level in range(1, max_moves + 1):
        done = stalled >= _PATIENCE
        if problem.holding is None:
            done |= beam.best < _BALANCED
        if done.any():
            _drop(beam, ~done)
            live, stalled = live[~done], stalled[~done]
        if not len(live):
            break
        before = beam.best.copy()
        _descend(beam, min(width, max(width * _WIDE_LEVELS // level, _LEAST_WIDTH)))
        stalled = np.where(beam.best < before, 0, stalled + 1)
        objective.append(objective[-1].copy())
        maps.append(maps[-1].copy())
        objective[-1][live], maps[-1][live] = beam.best, beam.best_map
    return Levels(np.stack(objective), np.stack(maps))


def _start(problem: MoveProblem, previous: SlotMap, width: int) -> _Beam:
    layers, slots = previous.shape
    return _Beam(
        problem=problem,
        previous=previous,
        width=width,
        hashes=np.random.default_rng(0).integers(0, 2**62, (slots, problem.loads.shape[2]), dtype=np.int64),
        best=maps_of(problem, previous, previous, np.arange(layers, dtype=np.int64)).objective(),
        best_map=previous,
        best_key=np.zeros((layers,), dtype=np.int64),
        kept=np.repeat(previous[:, None], 6 * width, axis=1),
        keys=np.zeros((layers, 6 * width), dtype=np.int64),
        waiting=[[], [], []],
    )


def _drop(beam: _Beam, live: NDArray[np.bool_]) -> None:
    """Forget the layers that are not `live`."""
    beam.problem = beam.problem.of_layers(live)
    beam.previous, beam.kept, beam.keys = beam.previous[live], beam.kept[live], beam.keys[live]
    beam.best, beam.best_map, beam.best_key = beam.best[live], beam.best_map[live], beam.best_key[live]
    beam.waiting = [[each.of_layers(live) for each in level] for level in beam.waiting]


def _descend(beam: _Beam, num_kept: int) -> None:
    """Go one level down: keep the best maps that wait for it, then the best changes of what these have moved."""
    width = beam.width
    beam.waiting = [*beam.waiting[1:], []]
    beam.kept = np.concatenate([beam.kept[:, 2 * width :], beam.kept[:, -2 * width :]], axis=1)
    beam.keys = np.concatenate([beam.keys[:, 2 * width :], np.full_like(beam.keys[:, : 2 * width], -1)], axis=1)
    for half in range(2):
        chosen, key = _chosen(beam, num_kept)
        columns = slice((4 + half) * width, (4 + half) * width + num_kept)
        beam.kept[:, columns], beam.keys[:, columns] = chosen, key
        _expand(beam, chosen, key, half)


def _chosen(beam: _Beam, count: int) -> tuple[SlotMap, SlotMap]:
    """Return the best maps that wait for this level and differ, [layers, count, slots], and their hashes.

    Where fewer wait, the best map so far takes the place of the others.
    """
    layers, width = len(beam.previous), beam.width
    row = np.arange(layers, dtype=np.int64)[:, None]
    chosen = np.repeat(beam.best_map[:, None], count, axis=1)
    chosen_key = np.repeat(beam.best_key[:, None], count, axis=1)
    if not beam.waiting[0]:
        return chosen, chosen_key
    pool = _pooled(beam.waiting[0])
    beam.waiting[0] = []
    order = np.argsort(pool.score, axis=1, kind="stable")[:, : 3 * count]
    known = pool.key[row, order]
    again = np.tril(known[:, :, None] == known[:, None, :], -1).any(axis=2)
    again |= (known[:, :, None] == beam.keys[:, None, 4 * width :]).any(axis=2)
    score = np.where(again, np.inf, pool.score[row, order])
    front = np.argsort(score, axis=1, kind="stable")[:, :count]
    layer, place = np.nonzero(np.isfinite(score[row, front]))
    column = order[row, front][layer, place]
    found = beam.kept[layer, pool.parent[layer, column]]
    line = np.arange(len(layer), dtype=np.int64)
    for change in range(2):
        found[line, pool.slots[layer, column, change]] = pool.experts[layer, column, change]
    chosen[layer, place] = found
    chosen_key[layer, place] = pool.key[layer, column]
    return chosen, chosen_key


def _pooled(waiting: list[_Children]) -> _Children:
    """Return all that wait for a level side by side."""
    return _Children(
        np.concatenate([each.score for each in waiting], axis=1),
        np.concatenate([each.key for each in waiting], axis=1),
        np.concatenate([each.parent for each in waiting], axis=1),
        np.concatenate([each.slots for each in waiting], axis=1),
        np.concatenate([each.experts for each in waiting], axis=1),
    )


def _expand(beam: _Beam, chosen: SlotMap, key: SlotMap, half: int) -> None:
    """Note the best of these maps of this level, and let their children wait for their levels."""
    layers, num_maps, num_slots = chosen.shape
    layer = np.repeat(np.arange(layers, dtype=np.int64), num_maps)
    flat = chosen.reshape(-1, num_slots)
    maps = maps_of(beam.problem, flat, beam.previous[layer], layer)
    _note(beam, maps.objective().reshape(layers, num_maps), chosen, key)
    peak: Loads = maps.fullness.max(axis=(0, 2)).reshape(layers, num_maps)
    unit = np.maximum(peak.min(axis=1), _LEAST_UNIT)[layer]
    score = smooth_peak(maps, unit)[:, None]
    found = candidates(tables(maps, unit))
    row = maps.row
    for down in range(half, 3):
        gain = np.where(np.maximum(found.num_moves, 0) == down, found.gain, np.inf)
        best = np.argsort(gain, axis=1, kind="stable")[:, :_BRANCHES]
        slots, experts = found.slots[row, best], found.experts[row, best]
        change = beam.hashes[slots, experts] - beam.hashes[slots, flat[row[..., None], slots]]
        two = slots[..., 0] != slots[..., 1]
        new_key = key.reshape(-1, 1) + change[..., 0] + np.where(two, change[..., 1], 0)
        column = (2 * (2 - down) + half) * beam.width + np.arange(num_maps, dtype=np.int64)
        parent = np.broadcast_to(np.tile(column, layers)[:, None], best.shape)
        beam.waiting[down].append(
            _Children(
                (score + gain[row, best]).reshape(layers, -1),
                new_key.reshape(layers, -1),
                parent.reshape(layers, -1),
                slots.reshape(layers, -1, 2),
                experts.reshape(layers, -1, 2),
            )
        )


def _note(beam: _Beam, objective: Loads, chosen: SlotMap, key: SlotMap) -> None:
    """Remember each layer's best map, where it is better than what was best."""
    column = objective.argmin(axis=1)
    row = np.arange(len(column), dtype=np.int64)
    better = objective[row, column] < beam.best - _LEAST_GAIN
    beam.best = np.where(better, objective[row, column], beam.best)
    beam.best_map = np.where(better[:, None], chosen[row, column], beam.best_map)
    beam.best_key = np.where(better, key[row, column], beam.best_key)
