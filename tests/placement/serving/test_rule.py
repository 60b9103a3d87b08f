"""The serving rule is what its docstring says; every (token, expert) is served once, by a slot that holds it."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.placement.serving.rule import serve
from tests.placement.placed import placed_traces

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.placement.problem import PlacementProblem

    Placed = tuple[PlacementProblem, NDArray[np.int64]]


def served(
    problem: PlacementProblem, row: NDArray[np.int64], layer: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens of a layer, their homes and indices, and the slots that serve them."""
    assert problem.topk is not None
    topk = problem.topk[layer]
    random = np.random.default_rng(seed)
    home = random.integers(0, problem.num_nodes, topk.shape[0])
    token = random.integers(0, 1000, topk.shape[0])
    slots = serve(
        row,
        topk,
        home,
        token,
        num_gpus=problem.num_gpus,
        num_nodes=problem.num_nodes,
        node_distance=problem.node_distance,
    )
    return topk, home, token, slots


def nodes_of(problem: PlacementProblem, row: NDArray[np.int64]) -> dict[int, set[int]]:
    places: dict[int, set[int]] = {}
    for slot, expert in enumerate(row.tolist()):
        places.setdefault(expert, set()).add(slot // problem.slots_per_node)
    return places


def by_the_book(problem: PlacementProblem, row: NDArray[np.int64], experts: list[int], home: int, token: int) -> list:
    """Serve one token as the docstring of `serve` says, step by step."""
    places, count = nodes_of(problem, row), problem.num_nodes
    chosen = {expert: home for expert in experts if home in places[expert]}
    while unserved := [expert for expert in experts if expert not in chosen]:

        def rank(node: int, unserved: list[int] = unserved) -> tuple[float, ...]:
            far = 0.0 if problem.node_distance is None else float(problem.node_distance[home, node])
            return (-sum(node in places[expert] for expert in unserved), far, (node - home - token) % count)

        best = min(range(count), key=rank)
        chosen |= {expert: best for expert in unserved if best in places[expert]}
    slots = []
    for expert in experts:
        firsts: dict[int, int] = {}
        for slot in np.flatnonzero(row == expert).tolist():
            if slot // problem.slots_per_node == chosen[expert]:
                firsts.setdefault(slot // problem.slots_per_gpu, slot)
        turns = list(firsts.values())
        slots.append(turns[(token % count + token // count + home) % len(turns)])
    return slots


@given(placed_traces(max_nodes=10))
@settings(max_examples=60)
def test_it_is_the_rule_of_its_docstring(placed: Placed) -> None:
    problem, slot_map = placed
    for layer, row in enumerate(slot_map):
        topk, home, token, slots = served(problem, row, layer)
        for experts, start, index, found in zip(topk, home, token, slots, strict=True):
            assert found.tolist() == by_the_book(problem, row, experts.tolist(), int(start), int(index))


@given(placed_traces(max_nodes=18, max_k=9))
def test_every_expert_of_every_token_is_served_by_one_slot_that_holds_it(placed: Placed) -> None:
    problem, slot_map = placed
    for layer, row in enumerate(slot_map):
        topk, home, _, slots = served(problem, row, layer)
        assert slots.shape == topk.shape
        assert (row[slots] == topk).all()
        places = nodes_of(problem, row)
        for experts, start, found in zip(topk, home, slots // problem.slots_per_node, strict=True):
            for expert, node in zip(experts.tolist(), found.tolist(), strict=True):
                assert (node == start) == (int(start) in places[expert])


@given(placed_traces(max_nodes=6, max_k=6))
@settings(max_examples=60)
def test_remote_nodes_are_the_fewest_for_three_experts_or_three_nodes_and_near_them_else(placed: Placed) -> None:
    problem, slot_map = placed
    row, places = slot_map[0], nodes_of(problem, slot_map[0])
    topk, home, _, slots = served(problem, row, 0)
    for experts, start, found in zip(topk, home, slots // problem.slots_per_node, strict=True):
        away = [places[expert] for expert in experts.tolist() if int(start) not in places[expert]]
        reached = len(set(found.tolist()) - {int(start)})
        fewest = next(
            size
            for size in range(problem.num_nodes)
            if any(all(set(nodes) & held for held in away) for nodes in combinations(range(problem.num_nodes), size))
        )
        assert fewest <= reached <= fewest * sum(1 / i for i in range(1, len(away) + 1)) + 1e-9
        if len(away) <= 3 or problem.num_nodes <= 3:
            assert reached == fewest


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 4), st.integers(1, 3))
def test_copies_of_a_node_take_equally_many_turns(nodes: int, gpus: int, home: int, rounds: int) -> None:
    token = np.arange(nodes * gpus * rounds)
    slots = serve(
        np.zeros(nodes * gpus, dtype=np.int64),
        np.zeros((token.size, 1), dtype=np.int64),
        np.full_like(token, home % nodes),
        token,
        num_gpus=nodes * gpus,
        num_nodes=nodes,
    )
    turns = np.bincount(slots.ravel(), minlength=nodes * gpus).reshape(nodes, gpus)
    assert (turns[home % nodes] == nodes * rounds).all()


@given(st.integers(3, 6), st.integers(2, 4))
def test_turns_and_the_rotation_over_nodes_do_not_lock(nodes: int, gpus: int) -> None:
    row = np.where(np.arange(nodes * gpus) < gpus, 1, 0)  # node 0 holds expert 1, every GPU elsewhere expert 0
    token = np.arange(nodes * gpus)
    slots = serve(row, np.zeros((token.size, 1), dtype=int), token * 0, token, num_gpus=row.size, num_nodes=nodes)
    turns = np.bincount(slots.ravel(), minlength=row.size).reshape(nodes, gpus)
    assert (turns[1:].min(axis=1) == turns[1:].max(axis=1)).all()
    assert turns[1:].min() >= 1


def test_more_than_255_experts_a_token_are_counted_right() -> None:
    others = np.full(300, 300)
    row = np.concatenate([others, np.arange(260), others[:40], np.arange(200, 300), others[:200]])
    slots = serve(row, np.arange(300)[None], np.array([0]), np.array([0]), num_gpus=3, num_nodes=3)
    assert (slots[0] // 300 == np.where(np.arange(300) < 260, 1, 2)).all()


def test_an_expert_without_a_slot_is_refused() -> None:
    with pytest.raises(InputError, match="no slot holds"):
        serve(np.array([0, 1]), np.array([[0, 2]]), np.array([0]), np.array([0]), num_gpus=2, num_nodes=2)
