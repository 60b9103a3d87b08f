"""Laws of recovery: what can be held is held, what stays is not touched, and sources have what they give."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moiety.placement.recovery import recover


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 4), st.integers(1, 16), st.integers(1, 8))
def test_recovery(seed: int, gpus: int, slots: int, experts: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    before = rng.integers(-1, experts, (2, gpus, slots))
    taking = rng.random(gpus) < 0.7
    shares = rng.dirichlet(np.ones(experts), size=2)
    found = recover(before, taking, shares, most_slots=most)
    size = found.slot_map.shape[2]
    assert slots <= size <= max(most, slots)
    assert (found.slot_map[:, ~taking] == -1).all()
    for layer in range(2):
        held = set(found.slot_map[layer].ravel().tolist()) - {-1}
        lost = {expert for row, expert in found.lost if row == layer}
        assert held | lost == set(range(experts))
        assert not held & lost
        assert bool(lost) == (int(taking.sum()) * max(most, slots) < experts)
    slot_map = np.concatenate([before, np.full((2, gpus, size - slots), -1)], axis=2)
    slot_map[:, ~taking] = -1
    for fill in found.fills:
        assert fill.source is None or fill.expert in slot_map[fill.layer, fill.source]
        old = slot_map[fill.layer, fill.gpu, fill.slot]
        assert old == -1 or (slot_map[fill.layer] == old).sum() > 1  # only a copy is given up
        slot_map[fill.layer, fill.gpu, fill.slot] = fill.expert
    assert np.array_equal(slot_map, found.slot_map)
