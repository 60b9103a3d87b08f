"""What copies are worth for traffic, and moves that weigh it."""

from __future__ import annotations

import numpy as np
import pytest

from moiety.placement.methods.balance import balance
from moiety.placement.methods.local_search import PRICE
from moiety.placement.metrics import measure
from moiety.placement.migration.holding_cost import holding_cost
from moiety.placement.migration.migration import migrate
from moiety.placement.serving.traffic import traffic
from tests.placement.methods.test_joint import communities
from tests.placement.placed import problem_of


def test_moving_an_only_copy_costs_what_it_changes_of_the_traffic() -> None:
    topk = communities(4, experts=12, groups=3, tokens=300, k=3)
    problem = problem_of(topk, num_experts=12, num_gpus=3, num_nodes=3, num_slots=12)
    slots = balance(problem)
    worth = holding_cost(problem, slots)
    assert worth is not None
    before = traffic(problem, slots).served["cover"].remote_nodes[0]
    for one, other in [(0, 5), (3, 9), (11, 4)]:
        a, b = slots[0, one], slots[0, other]
        if (topk[0] == a).any(axis=1) @ (topk[0] == b).any(axis=1):
            continue  # tokens that need both make it first-order
        swapped = slots.copy()
        swapped[0, [one, other]] = b, a
        after = traffic(problem, swapped).served["cover"].remote_nodes[0]
        told = worth[0, a, other // 4] - worth[0, a, one // 4] + worth[0, b, one // 4] - worth[0, b, other // 4]
        assert told * PRICE == pytest.approx(after - before, abs=1e-9)


def test_few_moves_lessen_the_traffic_and_keep_the_balance() -> None:
    topk = communities(5, experts=32, groups=8, tokens=4000, k=4, layers=2)
    problem = problem_of(topk, num_experts=32, num_gpus=4, num_nodes=4, num_slots=36)
    before = balance(problem)
    migration = migrate(problem, before, max_moves=6, holding_cost=holding_cost(problem, before))
    was, now = measure(problem, before), measure(problem, migration.slot_map)
    assert was.traffic is not None
    assert now.traffic is not None
    assert migration.num_moves.max() <= 6
    assert now.traffic.cover.remote_nodes < 0.98 * was.traffic.cover.remote_nodes
    assert now.gpu_balance.mean >= was.gpu_balance.mean - 0.05


def test_without_tokens_or_other_nodes_there_is_nothing_to_weigh() -> None:
    topk = communities(4, experts=8, groups=2, tokens=50, k=2)
    problem = problem_of(topk, num_experts=8, num_gpus=2, num_nodes=1, num_slots=8)
    slots = np.arange(8, dtype=np.int64)[None]
    assert holding_cost(problem, slots) is None
