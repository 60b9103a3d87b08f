"""A layer's traffic expert by expert adds up to the traffic of the layer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.placement.methods.table import METHODS
from moiety.placement.problem import placement_problem
from moiety.placement.serving.expert_reach import remote_shares
from moiety.placement.serving.traffic import traffic
from moiety.workload.routing import Routing


@settings(max_examples=40)
@given(
    nodes=st.sampled_from([1, 2, 3]),
    spare=st.integers(0, 2),
    top_k=st.integers(1, 5),
    seed=st.integers(0, 99),
    name=st.sampled_from(["linear", "eplb-global", "balance"]),
)
def test_shares_add_up_to_the_remote_messages(nodes: int, spare: int, top_k: int, seed: int, name: str) -> None:
    experts, gpus = 12, 2 * nodes
    keys = np.random.default_rng(seed).random((2, 30, experts))
    topk = np.argsort(keys, axis=2)[:, :, :top_k]
    counts = np.stack([np.bincount(each.ravel(), minlength=experts) for each in topk])[None].astype(np.float64)
    problem = placement_problem(Routing(counts, topk), num_gpus=gpus, num_nodes=nodes, num_slots=experts + spare * gpus)
    slots = METHODS[name](problem)
    served = traffic(problem, slots).served
    for layer in range(2):
        for cover in (False, True):
            shares = remote_shares(problem, slots[layer], layer, cover=cover)
            expected = served["cover" if cover else "even"].messages[layer]
            into = expected.sum(axis=0) - expected.diagonal()
            assert shares.sum(axis=0) == pytest.approx(into, abs=1e-9)
            held = np.zeros(shares.shape, dtype=np.bool_)
            held[slots[layer], np.arange(problem.num_slots) // problem.slots_per_node] = True
            assert not shares[~held].any()
            used = np.bincount(topk[layer].ravel(), minlength=experts) / 30
            assert (shares.sum(axis=1) <= used + 1e-9).all()
