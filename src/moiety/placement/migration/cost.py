"""What it takes to turn one slot map into another: the experts' weights that are copied, and the time on the links."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from moiety.errors import InputError
from moiety.records import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.placement.problem import Loads, PlacementProblem, SlotMap

_DIRECTIONS = 2
_TIERS = 2


@dataclass(frozen=True, slots=True)
class CopyLinks:
    """The weights of an expert, and each GPU's ports that they pass; a port has the same bandwidth in and out."""

    expert_bytes: float
    node_bytes_per_s: float
    """Port to the other GPUs of the node."""
    network_bytes_per_s: float
    """Port to other nodes."""

    def __post_init__(self) -> None:
        for name in ("expert_bytes", "node_bytes_per_s", "network_bytes_per_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError("must be a positive number", field=name, value=value)


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """The slots that change and where their experts come from, each [copies]."""

    layer: SlotMap
    slot: SlotMap
    expert: SlotMap
    source_slot: SlotMap
    """Slot of the previous map that held the expert; on the slot's own GPU where that held it."""


class MigrationCost(Record):
    """Bytes and time of a migration, when every copy reads the previous map's weights and each port is used fully."""

    num_changed_slots: Annotated[int, Field(ge=0)]
    num_copies: Annotated[int, Field(ge=0)]
    """Changed slots whose expert was not on their GPU before."""
    node_bytes: Annotated[float, Field(ge=0)]
    """Between GPUs of a node."""
    network_bytes: Annotated[float, Field(ge=0)]
    """Between nodes."""
    time_s: Annotated[float, Field(ge=0)]
    """All layers together: the busiest port's bytes over its bandwidth."""
    layer_time_s: tuple[float, ...]
    """Likewise of each layer alone; one layer after the other takes their sum."""

    @property
    def size_bytes(self) -> float:
        """Bytes copied between GPUs."""
        return self.node_bytes + self.network_bytes


def copies_between(problem: PlacementProblem, previous: SlotMap, slot_map: SlotMap) -> Copies:
    """Return the copies from the previous map, [layers, slots], to `slot_map`, by layer and slot.

    An expert comes from its slot's own GPU if that held it, else from a GPU of the node that did, else from any.
    Equally near ones take turns. Every expert of `slot_map` must be in `previous`.
    """
    layer, slot = np.nonzero(slot_map != previous)
    expert = slot_map[layer, slot]
    row = np.arange(len(previous), dtype=np.int64)[:, None]
    gpu_of_slot = np.arange(previous.shape[1], dtype=np.int64) // problem.slots_per_gpu
    held = np.zeros((len(previous), problem.num_experts, problem.num_gpus), dtype=np.bool_)
    held[row, previous, gpu_of_slot] = True
    node = np.arange(problem.num_gpus, dtype=np.int64) // problem.gpus_per_node
    gpu = gpu_of_slot[slot]
    source = held[layer, expert]
    assert source.any(axis=1).all(), "the previous map holds every expert"
    near = source & (node == node[gpu][:, None])
    source = np.where(near.any(axis=1, keepdims=True), near, source)
    turn = (_rank_of_equals(layer * problem.num_experts + expert) + layer + expert) % source.sum(axis=1)
    chosen = (source.cumsum(axis=1) == turn[:, None] + 1).argmax(axis=1)
    chosen = np.where(held[layer, expert, gpu], gpu, chosen)
    first = chosen * problem.slots_per_gpu
    inside = np.arange(problem.slots_per_gpu, dtype=np.int64)
    source_slot = first + (previous[layer[:, None], first[:, None] + inside] == expert[:, None]).argmax(axis=1)
    return Copies(layer, slot, expert, source_slot)


def migration_cost(problem: PlacementProblem, previous: SlotMap, slot_map: SlotMap, links: CopyLinks) -> MigrationCost:
    """Return the bytes and time of copying what `slot_map` [layers, slots] needs from the GPUs of `previous`."""
    copies = copies_between(problem, previous, slot_map)
    num_bytes = port_bytes(problem, copies, links.expert_bytes)
    tiers = num_bytes[:, :, 0].sum(axis=(0, 2))
    return MigrationCost(
        num_changed_slots=len(copies.slot),
        num_copies=round(float(tiers.sum()) / links.expert_bytes),
        node_bytes=float(tiers[0]),
        network_bytes=float(tiers[1]),
        time_s=float(port_time_s(num_bytes.sum(axis=0, keepdims=True), links)[0]),
        layer_time_s=tuple(port_time_s(num_bytes, links).tolist()),
    )


def port_bytes(problem: PlacementProblem, copies: Copies, expert_bytes: float) -> Loads:
    """Return the bytes through each port, [layers, tiers (node, network), directions (out, in), GPUs]."""
    source, target = copies.source_slot // problem.slots_per_gpu, copies.slot // problem.slots_per_gpu
    tier = (source // problem.gpus_per_node != target // problem.gpus_per_node).astype(np.int64)
    shape = (problem.num_layers, _TIERS, _DIRECTIONS, problem.num_gpus)
    between = source != target
    counts = np.zeros(math.prod(shape), dtype=np.int64)
    for direction, gpu in enumerate((source, target)):
        port = ((copies.layer * _TIERS + tier) * _DIRECTIONS + direction) * problem.num_gpus + gpu
        counts += np.bincount(port[between], minlength=len(counts))
    sent: Loads = counts.reshape(shape).astype(np.float64)
    return sent * expert_bytes


def port_time_s(num_bytes: Loads, links: CopyLinks) -> Loads:
    """Return the busiest port's seconds, [layers], of bytes [layers, tiers, directions, GPUs]."""
    bandwidth = np.array([links.node_bytes_per_s, links.network_bytes_per_s], dtype=np.float64)
    seconds: Loads = num_bytes / bandwidth[:, None, None]
    busiest: Loads = seconds.max(axis=(1, 2, 3))
    return busiest


def settled(problem: PlacementProblem, previous: SlotMap, slot_map: SlotMap) -> SlotMap:
    """Return `slot_map` with each GPU's experts reordered so that those that stay on the GPU stay in their slots."""
    shape = (-1, problem.slots_per_gpu)
    old, new = previous.reshape(shape), slot_map.reshape(shape)
    line = np.arange(len(old), dtype=np.int64)
    origin = np.full(old.shape, -1, dtype=np.int64)
    free = np.ones(old.shape, dtype=np.bool_)
    for slot in range(problem.slots_per_gpu):
        same = (new == old[:, slot, None]) & free
        found = same.any(axis=1)
        place = same.argmax(axis=1)
        origin[found, slot] = place[found]
        free[line[found], place[found]] = False
    missing = origin < 0
    origin[missing] = np.nonzero(free)[1]  # both by GPU, then by slot; as many free as missing on each GPU
    return np.take_along_axis(new, origin, axis=1).reshape(slot_map.shape)


def _rank_of_equals(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many equal values stand before each value."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    position = np.arange(len(values), dtype=np.int64)
    is_first = np.concatenate([np.ones(min(len(values), 1), dtype=np.bool_), ordered[1:] != ordered[:-1]])
    rank = np.empty_like(position)
    rank[order] = position - np.maximum.accumulate(np.where(is_first, position, 0))
    return rank
