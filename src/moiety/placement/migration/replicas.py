"""Copies that follow the load: from experts that have cooled to experts that have become hot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moiety.placement.problem import Loads, SlotMap

_HOTTER = 1.6
"""How many times the load a copy of the one must exceed that of the other after the change: hysteresis."""


def replicas_that_follow(slot_map: SlotMap, shares: Loads, num_gpus: int, max_moves: int) -> SlotMap:
    """Return a map in which up to `max_moves` copies a layer have gone from cool experts to hot ones.

    `slot_map` is [layers, slots], `shares` [layers, experts]. An even peak does not need them, but a copy that carries
    much is what the next window's chance falls on hardest: balance that is to last wants the largest copies small.
    """
    after = slot_map.copy()
    for layer, row in enumerate(after):
        by_gpu = row.reshape(num_gpus, -1)  # a view: changes of the one are changes of the other
        for _ in range(max_moves):
            copies = np.bincount(row, minlength=shares.shape[1])
            each = shares[layer] / copies
            left = np.where(copies > 1, shares[layer] / np.maximum(copies - 1, 1), np.inf)
            hot, cool = int(each.argmax()), int(left.argmin())
            if not each[hot] > _HOTTER * left[cool]:
                break
            slots = np.flatnonzero((by_gpu == cool) & ~(by_gpu == hot).any(axis=1)[:, None])
            if not len(slots):
                break
            loads = each[by_gpu].sum(axis=1)
            row[slots[loads[slots // by_gpu.shape[1]].argmin()]] = hot
    return after
