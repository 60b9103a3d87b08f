"""The compiled loops: what the tables promise of a move, and what a sweep leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.placement.methods.kernels import exchange_pass, gain_tables, uneven_gain_tables
from moiety.placement.serving.traffic import traffic
from tests.placement.placed import placed_traces

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.placement.problem import PlacementProblem


def tables(
    held: NDArray[np.bool_], topk: NDArray[np.int64], distance: NDArray[np.float64]
) -> tuple[float, list[NDArray[np.float64]]]:
    """Return the traffic of a layer's tokens, each from every home, and the tables add, rem, both and served."""
    experts, nodes = held.shape
    bits = held @ (1 << np.arange(nodes))
    records = np.repeat(topk, nodes, axis=0)
    home = np.tile(np.arange(nodes), len(topk))
    weight = np.full(len(records), 1.0 / len(records))
    found = [np.zeros((experts, nodes)), np.zeros((experts, nodes)), np.zeros((experts, nodes, nodes))]
    served = np.zeros((experts, nodes))
    uneven = bool((distance[~np.eye(nodes, dtype=bool)] != 1).any())
    fill = uneven_gain_tables if uneven else gain_tables
    return fill(bits, records, home, weight, distance, *found, served), [*found, served]


@st.composite
def spread(draw: st.DrawFn, *, copies: bool) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]]:
    nodes, experts = draw(st.integers(2, 5)), draw(st.integers(2, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    held = np.zeros((experts, nodes), dtype=np.bool_)
    held[np.arange(experts), random.integers(0, nodes, experts)] = True
    if copies:
        held |= random.random(held.shape) < 0.2
    topk = random.random((draw(st.integers(1, 12)), experts)).argsort(axis=1)[:, : draw(st.integers(1, experts))]
    distance = 1.0 - np.eye(nodes)
    if draw(st.booleans()):
        distance *= random.integers(1, 4, (nodes, nodes))
    return held, topk, distance


@settings(max_examples=60, deadline=None)
@given(spread(copies=False))
def test_the_tables_are_exact_for_the_move_of_an_only_copy(
    drawn: tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]],
) -> None:
    held, topk, distance = drawn
    before, (add, rem, both, _) = tables(held, topk, distance)
    for expert in range(len(held)):
        source = int(held[expert].argmax())
        for target in range(held.shape[1]):
            if target == source:
                continue
            moved = held.copy()
            moved[expert, [source, target]] = moved[expert, [target, source]]
            after, _ = tables(moved, topk, distance)
            told = rem[expert, source] - add[expert, target] - both[expert, source, target]
            assert told == pytest.approx(after - before, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(spread(copies=True))
def test_the_tables_are_exact_for_tokens_of_one_expert(
    drawn: tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]],
) -> None:
    held, topk, distance = drawn
    one_each = topk[:, :1]  # a single expert a token: nothing depends on what others need
    before, (add, rem, _, served) = tables(held, one_each, distance)
    used = np.unique(one_each)
    for expert in used:
        for node in range(held.shape[1]):
            changed = held.copy()
            changed[expert, node] = not held[expert, node]
            if not changed[expert].any():
                continue
            after, _ = tables(changed, one_each, distance)
            told = rem[expert, node] if held[expert, node] else -add[expert, node]
            assert after - before == pytest.approx(told, abs=1e-9)
    several = held.sum(axis=1) > 1
    tokens = np.bincount(one_each[:, 0], minlength=len(held)) / len(one_each)
    assert served[several].sum(axis=1) == pytest.approx(tokens[several])
    assert not served[~held].any()


@settings(max_examples=40, deadline=None)
@given(placed_traces(copies=False, distances=False))
def test_the_traffic_of_single_copies_is_the_metric(drawn: tuple[PlacementProblem, NDArray[np.int64]]) -> None:
    problem, slot_map = drawn
    assert problem.topk is not None
    nodes = problem.num_nodes
    exact = traffic(problem, slot_map).served["cover"].remote_nodes
    node = np.arange(problem.num_slots) // problem.slots_per_node
    for layer, row in enumerate(slot_map):
        held = np.zeros((problem.num_experts, nodes), dtype=np.bool_)
        held[row, node] = True
        found, _ = tables(held, problem.topk[layer], 1.0 - np.eye(nodes))
        assert found == pytest.approx(exact[layer], abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_a_sweep_keeps_its_own_books(seed: int, most: int) -> None:
    random = np.random.default_rng(seed)
    nodes, gpus, per_gpu = 2, 4, 3
    experts = int(random.integers(per_gpu, 11))
    slots = _apart(random, experts, gpus, per_gpu)
    gpu, node = np.arange(12) // 3, np.arange(12) // 6
    on_gpu, on_node = np.zeros((experts, gpus), dtype=np.int64), np.zeros((experts, nodes), dtype=np.int64)
    np.add.at(on_gpu, (slots, gpu), 1)
    np.add.at(on_node, (slots, node), 1)
    copies = on_gpu.sum(axis=1)
    load = random.random((2, experts))
    part = np.repeat((load / copies)[:, :, None], nodes, axis=2)
    filled = part[:, slots, node].reshape(2, gpus, per_gpu).sum(axis=2)
    add, rem = random.random((experts, nodes)), random.random((experts, nodes))
    limit = np.full((2, gpus), filled.mean())
    done = exchange_pass(
        random.permutation(12), slots, on_gpu, on_node, copies, part, filled, limit, 1.0, add, rem,
        np.zeros((experts, nodes, nodes)), np.zeros(experts, dtype=np.bool_), np.empty(gpus), np.empty(experts), most,
    )  # fmt: skip
    assert 0 <= done <= most
    assert np.bincount(slots, minlength=experts).tolist() == copies.tolist()
    assert copies.min() >= 1
    assert on_gpu.max() == 1
    again = np.zeros_like(on_gpu)
    np.add.at(again, (slots, gpu), 1)
    assert np.array_equal(again, on_gpu)
    assert np.array_equal(again.reshape(experts, nodes, 2).sum(axis=2), on_node)
    now = (load / copies)[:, slots].reshape(2, gpus, per_gpu).sum(axis=2)
    assert filled == pytest.approx(now)


def _apart(random: np.random.Generator, experts: int, gpus: int, per_gpu: int) -> NDArray[np.int64]:
    """Return a random map [slots] in which every expert has a copy and no GPU two of one."""
    while True:
        slots = np.stack([random.permutation(experts)[:per_gpu] for _ in range(gpus)]).reshape(-1)
        if len(np.unique(slots)) == experts:
            return slots
