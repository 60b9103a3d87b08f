"""How many copies each expert gets: the counts whose fullest copy is lightest, and others near them to try."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.placement.problem import Loads, SlotMap


def least_peak_counts(loads: Loads, num_slots: int, most_copies: int, offset: float = 0.0) -> SlotMap:
    """Return each expert's copies, [layers, experts], at least 1 and at most `most_copies`, `num_slots` in all.

    The next copy goes to the expert with most load / (copies + offset). With `offset` 0 that makes the heaviest copy as
    light as can be (a divisor method of apportionment, Adams 1832: no other counts have a lighter heaviest copy); below
    0 warm experts get copies before the hottest get more, above 0 after. `loads` is [layers, experts], `offset` > -1.
    """
    layers, experts = loads.shape
    assert experts <= num_slots <= experts * most_copies, "room for every expert, and no more"
    every = np.arange(layers, dtype=np.int64)
    floor = np.maximum(loads.mean(axis=1, keepdims=True) * 1e-9, np.finfo(float).tiny * 1e9)
    load = loads + floor  # experts without load share what copies are left over
    copies = np.ones((layers, experts), dtype=np.int64)
    claim = load / (1 + offset) if most_copies > 1 else np.full_like(load, -1.0)
    for _ in range(num_slots - experts):
        hottest = claim.argmax(axis=1)
        copies[every, hottest] += 1
        now = copies[every, hottest]
        claim[every, hottest] = np.where(now < most_copies, load[every, hottest] / (now + offset), -1.0)
    return copies


def nearby_counts(
    counts: SlotMap, loads: Loads, heaviest: Loads, most_copies: int, num_tries: int, random: np.random.Generator
) -> SlotMap:
    """Return other counts one or two moved copies away, [layers, num_tries, experts].

    A move takes a copy of one expert and gives it to another, drawn by `random`. No expert gives one whose other copies
    would then reach `heaviest` [layers], the load of the fullest GPU: such counts cannot lower it.
    """
    near = np.repeat(counts[:, None], num_tries, axis=1)
    for step in range(2):
        moving = np.ones(num_tries, dtype=bool) if step == 0 else np.arange(num_tries, dtype=np.int64) % 2 == 1
        spare = (near > 1) & (loads[:, None] < heaviest[:, None, None] * (near - 1))
        giver = _draw(spare, random)
        free = near < most_copies
        np.put_along_axis(free, giver[..., None], values=False, axis=2)
        taker = _draw(free, random)
        possible = spare.any(axis=2) & free.any(axis=2) & moving
        layer, attempt = np.nonzero(possible)
        near[layer, attempt, giver[possible]] -= 1
        near[layer, attempt, taker[possible]] += 1
    return near


def _draw(allowed: NDArray[np.bool_], random: np.random.Generator) -> SlotMap:
    """Return the column of one allowed entry of each row, drawn at random."""
    return np.where(allowed, random.random(allowed.shape), -1.0).argmax(axis=-1)
