"""Statistics of routing: what is known without structure and with structure that was put in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moiety.errors import InputError
from moiety.workload.routing import Routing, windowed
from moiety.workload.routing_statistics import LayerFigures, RoutingStatistics, implied_pairs, routing_statistics


def of(figures: LayerFigures | None) -> LayerFigures:
    assert figures is not None
    return figures


def counted(topk: np.ndarray, experts: int, sequence: np.ndarray | None = None) -> Routing:
    counts = np.stack([np.bincount(layer.ravel(), minlength=experts) for layer in topk])[None].astype(float)
    return Routing(counts=counts, topk=topk, sequence=sequence)


def independent(weights: np.ndarray, tokens: int, k: int, seed: int = 0) -> np.ndarray:
    """Draw k experts a token without replacement, tokens and layers independent of each other."""
    rng = np.random.default_rng(seed)
    keys = np.log(weights)[:, None] + rng.gumbel(size=(len(weights), tokens, weights.shape[1]))
    return np.argsort(-keys, axis=2)[:, :, :k]


SKEWED = np.tile(np.exp(np.linspace(-1.5, 1.5, 16)), (3, 1))


def test_routing_without_structure_has_lift_1_and_the_affinity_of_chance() -> None:
    topk = independent(SKEWED, 30_000, 3)
    found = routing_statistics(counted(topk, 16, np.arange(30_000) // 100))
    assert of(found.coactivation_lift).mean == pytest.approx(1.0, abs=0.02)
    assert of(found.coactivation_distance).mean < 0.03
    assert of(found.next_layer_lift).mean == pytest.approx(1.0, abs=0.01)
    assert of(found.window_distance).mean < 0.02
    assert of(found.window_cosine).mean > 0.999
    chance = of(found.chance_affinity).mean
    for affinity in (found.previous_token_affinity, found.same_sequence_affinity, found.same_window_affinity):
        assert of(affinity).mean == pytest.approx(chance, abs=0.005)


@pytest.mark.parametrize("tokens", [300, 3000])
def test_a_lift_does_not_depend_on_how_long_the_dump_is(tokens: int) -> None:
    lifts = [
        routing_statistics(counted(independent(np.ones((2, 12)), tokens, 3, seed), 12)).coactivation_lift
        for seed in range(8)
    ]
    assert np.mean([of(each).mean for each in lifts]) == pytest.approx(1.0, abs=0.03)


def test_experts_that_always_go_together_are_found() -> None:
    rng = np.random.default_rng(1)
    pair = rng.integers(0, 4, (2, 4000, 1)) * 2
    found = routing_statistics(counted(np.concatenate([pair, pair + 1], axis=2), 8))
    assert of(found.coactivation_lift).mean == pytest.approx(7.0, rel=0.02)  # 4 of the 28 pairs, alike likely
    assert of(found.coactivation_distance).mean == pytest.approx(1 - 4 / 28, rel=0.02)


def test_a_layer_that_follows_from_the_last_is_found() -> None:
    first = np.random.default_rng(2).integers(0, 8, (1, 5000, 1))
    found = routing_statistics(counted(np.concatenate([first, (first * 3) % 8]), 8))
    assert found.coactivation_lift is None  # one expert a token: no pairs
    assert of(found.next_layer_lift).per_layer == pytest.approx([8.0], rel=0.02)


def test_affinities_count_the_previous_token_the_sequence_and_the_window() -> None:
    topk = np.array([[[0, 1], [1, 2], [0, 1], [4, 5], [0, 1], [5, 6]]])
    sequence = np.array([7, 7, 3, 3, 7, 3])  # 7: 01, 12, 01; 3: 01, 45, 56
    found = routing_statistics(counted(topk, 8, sequence), num_windows=1)
    assert of(found.previous_token_affinity).mean == pytest.approx((1 + 1 + 0 + 1) / (4 * 2))
    assert of(found.same_sequence_affinity).mean == pytest.approx((1 + 2 + 1 + 0 + 0 + 1) / (6 * 2))
    assert of(found.same_window_affinity).mean == pytest.approx((2 + 1 + 2) / (9 * 2))


def test_drift_between_windows() -> None:
    counts = np.array([[[1.0, 1, 0, 0], [1, 1, 1, 1]], [[0, 0, 2, 2], [3, 3, 3, 3]], [[0, 0, 0, 0], [1, 1, 1, 1]]])
    found = routing_statistics(Routing(counts=counts))
    assert of(found.window_distance).per_layer == pytest.approx([1.0, 0.0])  # the empty window says nothing
    assert of(found.window_cosine).per_layer == pytest.approx([0.0, 1.0])
    assert found.top_k is None
    assert found.previous_token_affinity is None
    one = routing_statistics(Routing(counts=counts[:1]))
    assert one.window_distance is None
    assert routing_statistics(Routing(counts=np.repeat(counts, 50, axis=0))).num_windows == 150


def test_skew_of_known_loads() -> None:
    found = routing_statistics(Routing(counts=np.array([[[1.0, 1, 1, 1], [0, 0, 0, 8], [1, 3, 1, 3]]])))
    assert found.max_over_mean.per_layer == pytest.approx([1, 4, 1.5])
    assert found.coefficient_of_variation.per_layer == pytest.approx([0, 3**0.5, 0.5])
    assert found.gini.per_layer == pytest.approx([0, 0.75, 0.25])
    assert found.max_over_mean.mean == pytest.approx(6.5 / 3)


def test_windows_must_be_at_least_one() -> None:
    with pytest.raises(InputError, match="at least 1"):
        routing_statistics(counted(np.zeros((1, 3, 1), int), 2), num_windows=0)


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 6), st.integers(0, 99), st.booleans())
def test_any_routing_has_statistics_that_read_back(layers: int, tokens: int, k: int, seed: int, known: bool) -> None:
    topk = independent(np.ones((layers, 6)), tokens, k, seed)
    sequence = np.random.default_rng(seed).integers(-3, 3, tokens) if known else None
    found = routing_statistics(counted(topk, 6, sequence))
    assert RoutingStatistics.model_validate_json(found.model_dump_json()) == found
    for affinity in (found.previous_token_affinity, found.same_sequence_affinity, found.same_window_affinity):
        if affinity is not None:
            assert all(-1e-9 <= each <= 1 + 1e-9 for each in affinity.per_layer)


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(0, 99))
def test_names_of_experts_do_not_matter(k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    topk = independent(SKEWED[:, :8], 200, k, seed)
    names = np.stack([rng.permutation(8) for _ in range(3)])
    renamed = np.stack([names[layer][topk[layer]] for layer in range(3)])
    sequence = rng.integers(0, 5, 200)
    first, second = (routing_statistics(counted(each, 8, sequence)).model_dump() for each in (topk, renamed))
    for name, value in first.items():
        if isinstance(value, dict):
            assert second[name]["per_layer"] == pytest.approx(value["per_layer"])


@given(npst.arrays(np.float64, (2, 6), elements=st.floats(0.5, 1.0)))
def test_implied_pairs_keep_the_loads(partners: np.ndarray) -> None:
    implied = implied_pairs(partners)
    assert implied.sum(axis=2) == pytest.approx(partners, rel=1e-6)
    assert (np.diagonal(implied, axis1=1, axis2=2) == 0).all()
    assert implied == pytest.approx(np.swapaxes(implied, 1, 2))


def test_windows_of_the_dump_are_kept() -> None:
    topk = independent(SKEWED, 500, 2)
    assert routing_statistics(windowed(counted(topk, 16), 5)).num_windows == 5
    assert routing_statistics(counted(topk, 16), num_windows=3).num_windows == 3
    assert routing_statistics(counted(topk[:, :2], 16)).num_windows == 2
