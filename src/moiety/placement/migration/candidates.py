"""Single changes of slot maps, many maps at once: which overwrites and swaps lower a smooth peak of the GPU loads most.

The smooth peak of GPU loads is their p-norm over GPUs and windows. A change of slots alters few GPUs' loads, so its
effect on the sum of p-th powers is a sum over these; where two experts of a change share a GPU elsewhere the sum is
approximate, and only the choice between candidates suffers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from moiety.placement.problem import Loads, SlotMap

    Floats = NDArray[np.floating[Any]]
    Mask = NDArray[np.bool_]

_SQUARINGS = 4
POWER = 2**_SQUARINGS
"""p of the smooth peak: low enough to see the second fullest GPU, high enough to see the fullest first."""
_NUM_VICTIMS = 64
"""Slots that may be overwritten: those whose loss hurts least."""
_NUM_WANTED = 24
"""Experts that may get another copy: those whose other GPUs are relieved most ..."""
_NUM_LIGHT = 8
"""... and those that weigh least."""
_NUM_PARTNERS = 48
"""About how many slots, on the emptiest GPUs, the fullest GPU may swap with."""


_ATTEMPTS = 4
"""How many of a row's best candidates are tried before the row is given up, where a GPU holds the expert already."""


@dataclass(frozen=True, slots=True, eq=False)
class MoveProblem:
    """What a change of slots is judged by."""

    loads: Loads
    """Work of each expert, [windows, layers, experts], in units of a GPU's mean."""
    slowness: Loads
    """One over each GPU's relative speed, [GPUs]."""
    num_nodes: int
    holding: Loads | None = None
    """Cost of a node's having at least one copy of an expert, in units of the peak, [layers, experts, nodes]."""

    @property
    def num_gpus(self) -> int:
        """GPUs of a layer."""
        return self.slowness.shape[0]

    def of_layers(self, chosen: Mask) -> MoveProblem:
        """Return the problem of some layers."""
        holding = None if self.holding is None else self.holding[chosen]
        return MoveProblem(self.loads[:, chosen], self.slowness, self.num_nodes, holding)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Changes of one or two slots of each map, [maps, candidates]; infinite `gain` marks what is not allowed."""

    gain: Loads
    """Change of the smooth peak, and of the holding cost; good ones are negative."""
    num_moves: SlotMap
    """How many more slots differ from the previous map, at most: 0, 1 or 2."""
    slots: SlotMap
    """[maps, candidates, 2]; twice the same slot where only one changes."""
    experts: SlotMap
    """What they hold after it, [maps, candidates, 2]."""


@dataclass(slots=True, eq=False)
class Maps:
    """Some slot maps with what follows from them; `row` has shape [maps, 1]."""

    problem: MoveProblem
    slot_map: SlotMap
    previous: SlotMap
    layer: SlotMap
    row: SlotMap
    cells: SlotMap
    """map * experts + expert of each slot, [maps, slots]."""
    copies: SlotMap
    """[maps, experts]"""
    gpu: SlotMap
    """GPU of each slot, [slots]."""
    work: Loads
    """What each slot carries, [windows, maps, slots], in units of the mean GPU load."""
    fullness: Loads
    """Load over speed of each GPU, [windows, maps, GPUs]."""
    node_copies: SlotMap | None
    """Copies on each node, [maps, experts, nodes]; None without holding costs."""

    @property
    def held(self) -> Mask:
        """Whether a GPU holds an expert, [maps, GPUs, experts]."""
        held = np.zeros((len(self.slot_map), self.problem.num_gpus, self.copies.shape[1]), dtype=np.bool_)
        held[self.row, self.gpu, self.slot_map] = True
        return held

    def objective(self) -> Loads:
        """Return the peak of each map, and its holding cost, [maps]."""
        peak: Loads = self.fullness.max(axis=(0, 2))
        if self.problem.holding is None or self.node_copies is None:
            return peak
        return peak + np.where(self.node_copies > 0, self.problem.holding[self.layer], 0).sum(axis=(1, 2))


def maps_of(problem: MoveProblem, slot_map: SlotMap, previous: SlotMap, layer: SlotMap) -> Maps:
    """Return the loads of `slot_map` [maps, slots] beside `previous` [maps, slots], map i of layer `layer[i]`."""
    windows, _, experts = problem.loads.shape
    num_maps, slots = slot_map.shape
    row = np.arange(num_maps, dtype=np.int64)[:, None]
    cells = slot_map + row * experts
    copies = np.bincount(cells.ravel(), minlength=num_maps * experts).reshape(num_maps, experts)
    share = problem.loads[:, layer] / np.maximum(copies, 1)
    gpu = np.arange(slots, dtype=np.int64) // (slots // problem.num_gpus)
    work = share.reshape(windows, -1)[:, cells]
    fullness = work.reshape(windows, num_maps, problem.num_gpus, -1).sum(axis=3) * problem.slowness
    node_copies = None
    if problem.holding is not None:
        nodes = problem.num_nodes
        spots = cells * nodes + gpu // (problem.num_gpus // nodes)
        node_copies = np.bincount(spots.ravel(), minlength=num_maps * experts * nodes)
        node_copies = node_copies.reshape(num_maps, experts, nodes)
    return Maps(problem, slot_map, previous, layer, row, cells, copies, gpu, work, fullness, node_copies)


def smooth_peak(maps: Maps, unit: Loads) -> Loads:
    """Return the p-norm of the GPU loads, [maps]; `unit` [maps] is about their peak, and only keeps powers in range."""
    powers = _power(maps.fullness / unit[:, None]).sum(axis=(0, 2))
    smooth: Loads = unit * powers ** (1 / POWER)
    if maps.problem.holding is not None:
        smooth = smooth + maps.objective() - maps.fullness.max(axis=(0, 2))
    return smooth


@dataclass(slots=True, eq=False)
class Tables:
    """What the effect of a change is added up from, in units of the peak; powers are p-th powers."""

    maps: Maps
    held: Mask
    moved: Mask
    """Which slots differ from the previous map, [maps, slots]."""
    load: Floats
    """Fullness of each slot's GPU, [windows, maps, slots]."""
    weight: Floats
    """What each slot adds to it, [windows, maps, slots]."""
    power: Floats
    """Power of `load` summed over windows, [maps, slots]."""
    gain_of_copy: Floats
    """Change of powers on the GPUs that hold an expert when it gets one more copy, [maps, experts]."""
    loss_of_slot: Floats
    """Change of powers on the other GPUs that hold a slot's expert when it is lost, [maps, slots]."""
    next_share: Floats
    """Work of each copy of an expert once it has one more, [windows, maps, experts]."""
    slope: Floats
    """What one unit of the powers' sum is worth in units of the peak, [maps]."""


def tables(maps: Maps, unit: Loads) -> Tables:
    """Return the tables of maps whose loads are measured in `unit` [maps], which should be near their peaks."""
    windows, layer = maps.problem.loads.shape[0], maps.layer
    slots_per_gpu = maps.slot_map.shape[1] // maps.problem.num_gpus
    slowness = maps.problem.slowness[maps.gpu]
    fullness = (maps.fullness / unit[:, None]).astype(np.float32)
    weight = (maps.work * (slowness / unit[:, None])).astype(np.float32)
    full_power = _power(fullness)
    load = np.repeat(fullness, slots_per_gpu, axis=2)
    power = np.repeat(full_power, slots_per_gpu, axis=2)
    copies = maps.copies.ravel()[maps.cells].astype(np.float32)

    def by_expert(values: Floats) -> Floats:
        sums = np.bincount(maps.cells.ravel(), weights=values.ravel(), minlength=maps.copies.size)
        return sums.astype(np.float32).reshape(maps.copies.shape)

    gain = by_expert((_power(load - weight / (copies + 1)) - power).sum(axis=0))
    shifted = (_power(load + weight / np.maximum(copies - 1, 1)) - power).sum(axis=0)
    loss = by_expert(shifted).ravel()[maps.cells] - shifted
    loss[copies < 2] = np.inf  # noqa: PLR2004 - the last copy stays
    share = maps.problem.loads[:, layer] / ((maps.copies + 1) * unit[:, None])
    total = full_power.reshape(windows, len(layer), -1).sum(axis=(0, 2))
    return Tables(
        maps=maps,
        held=maps.held,
        moved=maps.slot_map != maps.previous,
        load=load,
        weight=weight,
        power=power.sum(axis=0),
        gain_of_copy=gain,
        loss_of_slot=loss,
        next_share=share.astype(np.float32),
        slope=unit / POWER * total ** (1 / POWER - 1),
    )


def retarget_gains(table: Tables, target: SlotMap) -> Loads:
    """Return the gain of giving each slot the expert it has in `target`, [maps, slots]; infinite if not allowed."""
    maps = table.maps
    row, gpu = maps.row, maps.gpu
    share = np.take_along_axis(table.next_share, target[None], axis=2) * maps.problem.slowness[gpu]
    gain = _power(table.load - table.weight + share).sum(axis=0) - table.power
    gain = gain + table.loss_of_slot + table.gain_of_copy[row, target]
    gain[(target == maps.slot_map) | table.held[row, gpu, target]] = np.inf
    gain = gain * table.slope[:, None]
    slot: SlotMap = np.arange(target.shape[1], dtype=np.int64)[None]
    return gain + _held_gain(maps, slot, target)


def candidates(table: Tables) -> Candidates:
    """Return the best overwrites of many slots, and the best swaps of each slot of the fullest GPU."""
    found = [_overwrites(table), *_swaps(table)]
    return Candidates(
        np.concatenate([each.gain for each in found], axis=1),
        np.concatenate([each.num_moves for each in found], axis=1),
        np.concatenate([each.slots for each in found], axis=1),
        np.concatenate([each.experts for each in found], axis=1),
    )


def _overwrites(table: Tables) -> Candidates:
    """Return for each of the slots that can best be spared the best expert to put there."""
    maps = table.maps
    row, gpu = maps.row, maps.gpu
    without = table.load - table.weight
    spared = table.loss_of_slot + _power(without).sum(axis=0) - table.power
    slot = _least(spared, _NUM_VICTIMS)
    expert = np.concatenate(
        [_least(table.gain_of_copy, _NUM_WANTED), _least(table.next_share.max(axis=0), _NUM_LIGHT)], axis=1
    )
    share = np.take_along_axis(table.next_share, expert[None], axis=2)[:, :, None, :]
    if maps.problem.slowness.min() != maps.problem.slowness.max():
        share = share * maps.problem.slowness[gpu[slot]][:, :, None].astype(np.float32)
    rest = np.take_along_axis(without, slot[None], axis=2)[..., None]
    change = _power(rest + share).sum(axis=0)
    change += table.gain_of_copy[row, expert][:, None, :]
    if maps.node_copies is not None:
        change += _held_gain(maps, slot[..., None], expert[:, None, :]) / table.slope[:, None, None]
    best, gain = _best_allowed(
        change, lambda line, place, column: table.held[line, gpu[slot[line, place]], expert[line, column]]
    )
    gain = (gain + (table.loss_of_slot - table.power)[row, slot]) * table.slope[:, None]
    chosen = expert[row, best]
    num_moves = np.where(table.moved[row, slot], 0, 1)
    return Candidates(gain.astype(np.float64), num_moves, _twice(slot), _twice(chosen))


def _swaps(table: Tables) -> list[Candidates]:
    """Return for each slot of the fullest GPU its best swap with an unmoved and with a moved slot of an empty GPU."""
    maps = table.maps
    row, gpu = maps.row, maps.gpu
    slots_per_gpu = maps.slot_map.shape[1] // maps.problem.num_gpus
    fullest = maps.fullness.max(axis=0)
    full = fullest.argmax(axis=1)[:, None]
    empty = _least(fullest, max(_NUM_PARTNERS // slots_per_gpu, 1))
    inside = np.arange(slots_per_gpu, dtype=np.int64)
    give = full * slots_per_gpu + inside
    take = (empty[:, :, None] * slots_per_gpu + inside).reshape(len(give), -1)
    given, taken = table.weight[:, row, give][..., None], table.weight[:, row, take][:, :, None, :]
    slow_give, slow_take = maps.problem.slowness[gpu[give]], maps.problem.slowness[gpu[take]]
    ratio = (slow_give[:, :, None] / slow_take[:, None, :]).astype(np.float32)
    change = _power(table.load[:, row, give][..., None] - given + taken * ratio).sum(axis=0)
    change += _power(table.load[:, row, take][:, :, None, :] - taken + given / ratio).sum(axis=0)
    change -= table.power[row, give][..., None] + table.power[row, take][:, None, :]
    ours, theirs = maps.slot_map[row, give], maps.slot_map[row, take]

    def is_barred(line: SlotMap, place: SlotMap, column: SlotMap) -> Mask:
        barred = table.held[line, gpu[take[line, column]], ours[line, place]]
        return barred | table.held[line, gpu[give[line, place]], theirs[line, column]]

    if maps.node_copies is not None:
        moved = _held_gain(maps, give[..., None], theirs[:, None, :])
        moved += _held_gain(maps, take[:, None, :], ours[..., None])
        size = maps.problem.num_gpus // maps.problem.num_nodes
        across = (gpu[give] // size)[..., None] != (gpu[take] // size)[:, None, :]
        change += np.where(across, moved / table.slope[:, None, None], 0)
    found: list[Candidates] = []
    for moved_partner in (False, True):
        allowed = np.where((table.moved[row, take] == moved_partner)[:, None, :], change, np.inf)
        best, gain = _best_allowed(allowed, is_barred)
        gain = gain * table.slope[:, None]
        partner = take[row, best]
        num_moves = 2 - int(moved_partner) - table.moved[row, give].astype(np.int64)
        experts = np.stack([theirs[row, best], ours], axis=2)
        found.append(Candidates(gain.astype(np.float64), num_moves, np.stack([give, partner], axis=2), experts))
    return found


def _best_allowed(change: Floats, is_barred: Callable[[SlotMap, SlotMap, SlotMap], Mask]) -> tuple[SlotMap, Floats]:
    """Return the column of the least `change` [maps, rows, columns] of each row that is not barred, and its change.

    Whether (map, row, column) is barred is asked only of the best, and of the next best a few times; the change is
    infinite where all these are barred.
    """
    best: SlotMap = change.argmin(axis=2)
    gain: Floats = np.take_along_axis(change, best[..., None], axis=2)[..., 0]
    line, row = np.nonzero(np.isfinite(gain))
    for attempt in range(_ATTEMPTS):
        barred = is_barred(line, row, best[line, row])
        line, row = line[barred], row[barred]
        if not len(line):
            break
        change[line, row, best[line, row]] = np.inf
        if attempt == _ATTEMPTS - 1:
            gain[line, row] = np.inf
            break
        best[line, row] = change[line, row].argmin(axis=1)
        gain[line, row] = change[line, row, best[line, row]]
    return best, gain


def _held_gain(maps: Maps, slot: SlotMap, expert: SlotMap) -> Loads | float:
    """Return the change of holding cost when `slot` gets `expert`, broadcast over [maps, ...]; 0 without such costs."""
    holding, counts = maps.problem.holding, maps.node_copies
    if holding is None or counts is None:
        return 0.0
    slot, expert = np.broadcast_arrays(slot, expert)
    row = maps.row.reshape((-1,) + (1,) * (slot.ndim - 1))
    layer = maps.layer.reshape(row.shape)
    node = maps.gpu[slot] // (maps.problem.num_gpus // maps.problem.num_nodes)
    lost = maps.slot_map[row, slot]
    gained = np.where(counts[row, expert, node] == 0, holding[layer, expert, node], 0.0)
    spared = np.where(counts[row, lost, node] == 1, holding[layer, lost, node], 0.0)
    return np.where(lost == expert, 0.0, gained - spared)


def _power(values: Floats) -> Floats:
    """Return the p-th powers of `values`, of rounding errors below 0 those of 0."""
    result = np.maximum(values, 0)
    for _ in range(_SQUARINGS):
        result *= result
    return result


def _least(values: Floats, count: int) -> SlotMap:
    """Return the columns of the `count` least values of each row, in no order."""
    count = min(count, values.shape[1])
    return np.argpartition(values, count - 1, axis=1)[:, :count]


def _twice(values: SlotMap) -> SlotMap:
    return np.stack([values, values], axis=2)
