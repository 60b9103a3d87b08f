"""Round robin: expert e on GPU e % G."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moiety.placement.methods.round_robin import round_robin
from moiety.placement.problem import PlacementProblem


@given(st.integers(1, 8), st.integers(1, 8))
def test_each_gpu_holds_every_gth_expert(gpus: int, per_gpu: int) -> None:
    experts = gpus * per_gpu
    slots = round_robin(PlacementProblem(np.ones((1, 2, experts)), gpus, 1, experts))
    gpu = np.arange(experts) // per_gpu
    assert (slots % gpus == gpu).all()


def test_copies_are_those_of_the_next_gpus() -> None:
    slots = round_robin(PlacementProblem(np.ones((1, 1, 5)), 3, 1, 12))
    assert slots.reshape(3, 4).tolist() == [[0, 3, 1, 4], [1, 4, 2, 0], [2, 0, 3, 1]]


def test_more_gpus_than_experts_start_over() -> None:
    slots = round_robin(PlacementProblem(np.ones((1, 1, 2)), 5, 1, 5))
    assert slots.tolist() == [[0, 1, 0, 1, 0]]
