"""EPLB, the expert-parallel load balancer of DeepSeek (github.com/deepseek-ai/EPLB, 2025), from its description.

It plans on the sum of the windows, in single precision as the published one does, so that both give the same map up to
ties. Nothing in it keeps two copies of an expert off one GPU: that is its published behaviour, and stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.placement.problem import PlacementProblem, SlotMap

    Weights = NDArray[np.float32]


def eplb(problem: PlacementProblem) -> SlotMap:
    """Return EPLB's map, hierarchical: groups of experts to nodes, copies within nodes, copies to the nodes' GPUs.

    Where the groups do not divide over the nodes it is the global one, as in the original.
    """
    if problem.num_groups % problem.num_nodes:
        return eplb_global(problem)
    return _hierarchical(problem, problem.num_groups, problem.num_nodes)


def eplb_global(problem: PlacementProblem) -> SlotMap:
    """Return EPLB's map with the copies dealt over all GPUs, whatever node they are in."""
    return _hierarchical(problem, 1, 1)


def _hierarchical(problem: PlacementProblem, num_groups: int, num_nodes: int) -> SlotMap:
    load = problem.counts.sum(axis=0).astype(np.float32)
    layers, experts = load.shape
    by_node = _experts_by_node(load, num_groups, num_nodes).reshape(layers * num_nodes, -1)  # experts of each node
    node_load = np.take_along_axis(load, by_node.reshape(layers, experts), axis=1).reshape(by_node.shape)
    copy_of, copies = _replicate(node_load, problem.num_slots // num_nodes)
    copy_load = np.take_along_axis((node_load / copies).astype(np.float32), copy_of, axis=1)
    slot = _pack_balanced(copy_load, problem.num_gpus // num_nodes)
    held = np.empty_like(copy_of)
    np.put_along_axis(held, slot, np.take_along_axis(by_node, copy_of, axis=1), axis=1)
    return held.reshape(layers, problem.num_slots)


def _experts_by_node(load: Weights, num_groups: int, num_nodes: int) -> SlotMap:
    """Return the experts in the order of the nodes that their groups are packed to, [layers, experts]."""
    layers, experts = load.shape
    size = experts // num_groups
    place = _pack_balanced(load.reshape(layers, num_groups, size).sum(axis=2, dtype=np.float32), num_nodes)
    group = np.empty_like(place)
    names = np.tile(np.arange(num_groups, dtype=np.int64), (layers, 1))
    members = np.arange(size, dtype=np.int64)
    np.put_along_axis(group, place, names, axis=1)
    return (group[:, :, None] * size + members).reshape(layers, experts)


def _replicate(load: Weights, num_copies: int) -> tuple[SlotMap, SlotMap]:
    """Return which expert each copy is of, [rows, num_copies], and each expert's copies, [rows, experts].

    The expert with most load a copy gets the next copy, and so on.
    """
    rows, experts = load.shape
    every = np.arange(rows, dtype=np.int64)
    copy_of = np.tile(np.arange(num_copies, dtype=np.int64), (rows, 1))
    copies = np.ones((rows, experts), dtype=np.int64)
    per_copy = load.copy()
    for index in range(experts, num_copies):
        hottest = per_copy.argmax(axis=1)
        copy_of[:, index] = hottest
        copies[every, hottest] += 1
        per_copy[every, hottest] = load[every, hottest] / copies[every, hottest].astype(np.float32)
    return copy_of, copies


def _pack_balanced(weight: Weights, num_packs: int) -> SlotMap:
    """Return each item's slot, pack after pack: the heaviest left goes to the lightest pack with room."""
    rows, items = weight.shape
    room = items // num_packs
    if room == 1:
        return np.tile(np.arange(items, dtype=np.int64), (rows, 1))
    every = np.arange(rows, dtype=np.int64)
    order = np.argsort(-weight, axis=1, kind="stable")
    packed = np.zeros((rows, num_packs), dtype=np.float32)
    key = packed.copy()  # as packed, infinite where a pack is full
    held = np.zeros((rows, num_packs), dtype=np.int64)
    slot = np.empty((rows, items), dtype=np.int64)
    for item in order.T:
        lightest = key.argmin(axis=1)
        rank = held[every, lightest]
        slot[every, item] = lightest * room + rank
        packed[every, lightest] += weight[every, item]
        key[every, lightest] = np.where(rank + 1 < room, packed[every, lightest], np.inf)
        held[every, lightest] = rank + 1
    return slot
