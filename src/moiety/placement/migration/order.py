"""The moves of a migration in an order in which every expert keeps a copy, those that help most first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moiety.placement.migration.candidates import MoveProblem, maps_of, retarget_gains, smooth_peak, tables

if TYPE_CHECKING:
    from moiety.placement.problem import Loads, PlacementProblem, SlotMap

_LEAST_UNIT = 1e-30


class Move(NamedTuple):
    """One slot that gets another expert."""

    layer: int
    """Row of the slot map."""
    slot: int
    expert: int
    source_slot: int
    """The nearest slot that holds the expert when this move's step begins."""
    step: int
    """Moves of one step read all their sources before any of them writes; one alone needs no buffer."""


@dataclass(slots=True)
class _Step:
    """Slots of a layer that change together, and what the least helpful step so far gained per move."""

    layer: int
    index: int
    """Position among the layer's steps."""
    slots: list[int]
    gain: float


def ordered_moves(
    problem: PlacementProblem, move_problem: MoveProblem, previous: SlotMap, slot_map: SlotMap
) -> tuple[Move, ...]:
    """Return the moves from `previous` [layers, slots] to `slot_map`, so that every prefix of whole steps is sound.

    Sound: every expert has a copy, and no GPU two copies of one that had not. Each step is the best of those possible,
    by the smooth peak of the GPU loads; a step has more than one move only where no single one is possible, as in a
    swap of two experts with one copy each, and then as many slots' weights less one must be buffered.
    """
    steps = _steps(move_problem, previous, slot_map)
    steps.sort(key=lambda step: (-step.gain, step.layer, step.index))
    now = previous.copy()
    sent = np.zeros(problem.num_gpus, dtype=np.int64)
    moves: list[Move] = []
    for number, step in enumerate(steps):
        row = now[step.layer]
        for slot in step.slots:
            expert = int(slot_map[step.layer, slot])
            source = _source(problem, row, slot, expert, sent)
            sent[source // problem.slots_per_gpu] += 1
            moves.append(Move(step.layer, slot, expert, source, number))
        row[step.slots] = slot_map[step.layer, step.slots]
    return tuple(moves)


def _steps(problem: MoveProblem, previous: SlotMap, slot_map: SlotMap) -> list[_Step]:
    """Return each layer's steps in order; a step never claims to gain more per move than the one before it."""
    now = previous.copy()
    lowest = np.full(len(previous), np.inf)
    steps: list[_Step] = []
    index = 0
    while len(live := np.flatnonzero((now != slot_map).any(axis=1))):
        maps = maps_of(problem, now[live], previous[live], live)
        unit = np.maximum(maps.fullness.max(axis=(0, 2)), _LEAST_UNIT)
        gains = retarget_gains(tables(maps, unit), slot_map[live])
        fullness = maps.fullness.max(axis=0)
        chosen = [
            [int(gain.argmin())] if np.isfinite(gain.min()) else _together(now[layer], slot_map[layer], full)
            for layer, gain, full in zip(live.tolist(), gains, fullness, strict=True)
        ]
        for layer, slots in zip(live.tolist(), chosen, strict=True):
            now[layer, slots] = slot_map[layer, slots]
        after: Loads = smooth_peak(maps_of(problem, now[live], previous[live], live), unit)
        gained = (smooth_peak(maps, unit) - after) / [len(slots) for slots in chosen]
        lowest[live] = np.minimum(lowest[live], gained)
        steps += [
            _Step(layer, index, slots, float(lowest[layer])) for layer, slots in zip(live.tolist(), chosen, strict=True)
        ]
        index += 1
    return steps


def _together(now: SlotMap, target: SlotMap, fullness: Loads) -> list[int]:
    """Return slots of one layer that can only change together, one of them on the fullest GPU that has any left."""
    slots_per_gpu = len(now) // len(fullness)
    left = np.flatnonzero(now != target)
    group = [int(left[fullness[left // slots_per_gpu].argmax()])]
    for slot in group:  # grows as it goes
        inside = slice(slot // slots_per_gpu * slots_per_gpu, (slot // slots_per_gpu + 1) * slots_per_gpu)
        twins = np.flatnonzero((now[inside] == target[slot]) & (target[inside] != target[slot])) + inside.start
        group += [twin for twin in twins.tolist() if twin not in group]
        held = np.flatnonzero(now == now[slot])
        if all(other in group for other in held.tolist()) and not (target[group] == now[slot]).any():
            group.append(int(np.flatnonzero((target == now[slot]) & (now != now[slot]))[0]))
    return group


def _source(problem: PlacementProblem, row: SlotMap, slot: int, expert: int, sent: SlotMap) -> int:
    """Return the slot of a layer's `row` to copy an expert from: the nearest GPU's, then the one that sent least."""
    holders = np.flatnonzero(row == expert)
    gpu, home = holders // problem.slots_per_gpu, slot // problem.slots_per_gpu
    remote = gpu // problem.gpus_per_node != home // problem.gpus_per_node
    return int(holders[np.lexsort((holders, sent[gpu], remote, gpu != home))[0]])
