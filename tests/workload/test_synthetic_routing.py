"""Synthetic routing: it has the statistics asked for, whatever its size, and the same seed gives the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.workload.latent_router import Choice
from moiety.workload.routing import Routing, read_routing
from moiety.workload.routing_file import npz_bytes
from moiety.workload.routing_statistics import LayerFigures, RoutingStatistics, routing_statistics
from moiety.workload.synthetic_routing import RoutingSize, RoutingTargets, synthesize, synthesize_from

SIZE = RoutingSize(num_layers=4, num_experts=32, top_k=4, num_tokens=24_000, num_sequences=200)


def mean(figures: LayerFigures | None) -> float:
    assert figures is not None
    return figures.mean


def above_chance(statistics: RoutingStatistics, figures: LayerFigures | None) -> float:
    chance = mean(statistics.chance_affinity)
    return (mean(figures) - chance) / (1 - chance)


@pytest.fixture(scope="module")
def trace() -> Routing:
    return synthesize_from(RoutingTargets(), SIZE, seed=5)


@pytest.mark.parametrize(
    "targets",
    [
        RoutingTargets(),
        RoutingTargets(coefficient_of_variation=1.0, coactivation_lift=1.4, next_layer_lift=1.2),
        RoutingTargets(previous_token_affinity=0.2, same_sequence_affinity=0.12, same_window_affinity=0.2),
        RoutingTargets(
            coefficient_of_variation=0.0,
            coactivation_lift=1.0,
            previous_token_affinity=0.0,
            same_sequence_affinity=0.0,
            same_window_affinity=0.0,
            next_layer_lift=1.0,
        ),
    ],
)
def test_the_statistics_are_those_asked_for(targets: RoutingTargets) -> None:
    made = synthesize_from(targets, SIZE, seed=1)
    found = routing_statistics(made)
    assert found.coefficient_of_variation.mean == pytest.approx(targets.coefficient_of_variation, rel=0.07, abs=0.05)
    assert mean(found.coactivation_lift) == pytest.approx(targets.coactivation_lift, abs=0.1)
    assert mean(found.next_layer_lift) == pytest.approx(targets.next_layer_lift, abs=0.12)
    previous, same = found.previous_token_affinity, found.same_sequence_affinity
    assert above_chance(found, previous) == pytest.approx(targets.previous_token_affinity, abs=0.03)
    assert above_chance(found, same) == pytest.approx(targets.same_sequence_affinity, abs=0.03)
    drift = mean(found.same_window_affinity) / mean(found.chance_affinity) - 1
    assert drift == pytest.approx(targets.same_window_affinity, rel=0.25, abs=0.04)


@pytest.mark.parametrize(("layers", "experts", "top_k"), [(6, 32, 4), (2, 64, 6), (4, 48, 2)])
def test_a_trace_is_matched_in_other_sizes(trace: Routing, layers: int, experts: int, top_k: int) -> None:
    made = synthesize(trace, num_layers=layers, num_experts=experts, top_k=top_k, num_tokens=12_000, seed=2)
    assert made.topk is not None
    assert made.topk.shape == (layers, 12_000, top_k)
    assert made.counts.shape == (1, layers, experts)
    assert made.counts.sum() == made.topk.size
    found, wanted = routing_statistics(made), routing_statistics(trace)
    assert found.coefficient_of_variation.mean == pytest.approx(wanted.coefficient_of_variation.mean, rel=0.1)
    assert mean(found.coactivation_lift) == pytest.approx(mean(wanted.coactivation_lift), abs=0.2)
    assert mean(found.next_layer_lift) == pytest.approx(mean(wanted.next_layer_lift), abs=0.3)
    for name in ("previous_token_affinity", "same_sequence_affinity"):
        got = above_chance(found, getattr(found, name))
        assert got == pytest.approx(above_chance(wanted, getattr(wanted, name)), abs=0.05), name


def test_in_its_own_size_every_expert_keeps_its_load(trace: Routing) -> None:
    made = synthesize(trace, num_tokens=12_000, seed=3)
    assert np.abs(made.load_share() - trace.load_share()).sum(axis=1).max() / 2 < 0.08
    assert made.sequence is not None
    assert len(np.unique(made.sequence)) == 100  # sequences as long as the trace's


def test_the_same_seed_gives_the_same_bytes(trace: Routing) -> None:
    def made(seed: int) -> bytes:
        routing = synthesize(trace, num_layers=2, num_tokens=500, seed=seed)
        assert routing.topk is not None
        assert routing.sequence is not None
        return npz_bytes({"topk": routing.topk, "sequence": routing.sequence})

    assert made(4) == made(4) != made(5)
    assert read_routing(made(4), source="r.npz").num_layers == 2


@pytest.mark.parametrize(("num_groups", "top_k_groups"), [(8, 4), (4, 1), (32, 4)])
def test_a_token_stays_in_its_groups(num_groups: int, top_k_groups: int) -> None:
    size = RoutingSize(2, 32, 4, 800, 10, num_groups=num_groups, top_k_groups=top_k_groups)
    made = synthesize_from(RoutingTargets(), size)
    assert made.topk is not None
    groups = np.sort(made.topk // (32 // num_groups), axis=2)
    assert ((np.diff(groups, axis=2) > 0).sum(axis=2) + 1).max() <= top_k_groups


@given(st.integers(0, 999), st.integers(1, 12), st.booleans())
def test_the_largest_keys_are_chosen_largest_first(seed: int, top_k: int, ties: bool) -> None:
    keys = np.random.default_rng(seed).standard_normal((2, 7, 12)).astype(np.float32)
    keys = np.round(keys) if ties else keys
    chosen = Choice(top_k).of(keys)
    assert np.take_along_axis(keys, chosen, axis=2).tolist() == np.sort(keys, axis=2)[..., ::-1][..., :top_k].tolist()
    assert (np.diff(np.sort(chosen, axis=2), axis=2) > 0).all()


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_any_size_gives_legal_routing(data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 12))
    tokens = data.draw(st.integers(1, 30))
    like = Routing(counts=np.array(data.draw(st.lists(st.floats(0, 9), min_size=1, max_size=5)))[None, None] + 0.01)
    made = synthesize(
        like,
        num_layers=data.draw(st.integers(1, 3)),
        num_experts=experts,
        top_k=data.draw(st.integers(1, experts)),
        num_tokens=tokens,
        num_sequences=data.draw(st.integers(1, tokens)),
    )
    assert made.topk is not None
    assert made.sequence is not None
    again = read_routing(npz_bytes({"topk": made.topk, "sequence": made.sequence}), source="r", num_experts=experts)
    assert again.counts.tolist() == made.counts.tolist()


def test_counts_alone_need_the_rest_said() -> None:
    like = Routing(counts=np.array([[[1.0, 2, 3, 4, 5, 6, 7, 20]]]))
    with pytest.raises(InputError, match="counts alone"):
        synthesize(like)
    made = synthesize(like, top_k=2, num_tokens=4000)
    assert made.load_share() == pytest.approx(like.load_share(), abs=0.03)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_layers": 0}, "num_layers"),
        ({"num_experts": 70_000}, "num_experts"),
        ({"top_k": 33}, "top_k"),
        ({"num_tokens": -1}, "num_tokens"),
        ({"num_tokens": 2**40}, "num_tokens"),
        ({"num_sequences": 30_000}, "num_sequences"),
        ({"num_groups": 5}, "must divide 32 experts"),
        ({"num_groups": 16, "top_k_groups": 1}, "at most the 2 experts of its groups"),
        ({"num_groups": 2, "top_k_groups": 3}, "top_k_groups"),
    ],
)
def test_a_size_that_cannot_be_is_refused(trace: Routing, wrong: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        synthesize(trace, **wrong)
