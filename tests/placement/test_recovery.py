"""Laws of recovery: what can be held is held, what stays is not touched, and sources have what they give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.placement.recovery import EMPTY, recover


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 4), st.integers(1, 16), st.integers(1, 8))
def test_recovery(seed: int, gpus: int, slots: int, experts: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    before = rng.integers(-1, experts, (2, gpus, slots))
    taking = rng.random(gpus) < 0.7
    shares = rng.dirichlet(np.ones(experts), size=2)
    found = recover(before, taking, shares, most_slots=most)
    size = found.slot_map.shape[2]
    assert slots <= size <= max(most, slots)
    assert size == slots or taking.any(), "there is nobody to have more"
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


@pytest.mark.parametrize("gone", [[2], [2, 5]])
def test_what_is_read_again_is_shared_out_over_all_layers(gone: list[int]) -> None:
    """Of layers that are all alike each of the others reads as much, give or take an expert: none keeps all waiting."""
    gpus, layers = 8, 21
    taking = ~np.isin(np.arange(gpus), gone)
    rows = np.tile(np.arange(gpus)[:, None], (layers, 1, 1))
    found = recover(rows, taking, np.full((layers, gpus), 1 / gpus), most_slots=2)
    read = np.bincount([fill.gpu for fill in found.fills if fill.source is None], minlength=gpus)
    assert read.sum() == layers * len(gone)
    assert read[taking].max() - read[taking].min() <= 1


@st.composite
def layers(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], int, int]:
    """Return what each GPU holds, how many experts there are, and the slots of a GPU that are wanted."""
    count = draw(st.integers(1, 12))
    gpus = draw(st.integers(1, 6))
    held = [tuple(draw(st.permutations(range(count)))[: draw(st.integers(0, count))]) for _ in range(gpus)]
    return held, count, draw(st.integers(1, count))


def taken_over(held: list[tuple[int, ...]], count: int, slots: int) -> list[list[int]]:
    """Return the experts of each GPU afterwards, where there is room for as many slots as it takes."""
    rows = np.full((1, len(held), count), EMPTY, dtype=np.int64)
    for gpu, experts in enumerate(held):
        rows[0, gpu, : len(experts)] = experts
    everyone = np.ones(len(held), dtype=np.bool_)
    found = recover(rows, everyone, np.full((1, count), 1 / count), most_slots=count, slots=slots)
    assert not found.lost
    return found.slot_map[0].tolist()


@given(layers())
def test_gpus_come_down_to_the_slots_that_are_wanted(case: tuple[list[tuple[int, ...]], int, int]) -> None:
    held, count, slots = case
    after = taken_over(held, count, slots)
    width = max(slots, -(-count // len(held)))
    assert {expert for each in after for expert in each} == set(range(count))
    assert all(len(set(each)) == len(each) == width for each in after)
    assert taken_over([tuple(each) for each in after], count, slots) == after, "where all fits nothing moves"


@given(layers())
def test_what_is_held_stays_unless_there_is_no_room_for_it(case: tuple[list[tuple[int, ...]], int, int]) -> None:
    held, count, slots = case
    width = max(slots, -(-count // len(held)))
    kept = [each[:width] for each in held]
    homeless = count - len({expert for each in kept for expert in each})
    after = taken_over(held, count, slots)
    assert sum(len(set(one) - set(other)) for one, other in zip(kept, after, strict=True)) <= homeless
