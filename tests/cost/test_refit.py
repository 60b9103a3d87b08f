"""Refitting finds the constants that made the observations, and leaves alone what was not observed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.calibration.catalog import load_calibration
from moiety.cost.price import Pricer
from moiety.cost.refit import Bench, Observation, non_negative_fit, refitted
from moiety.graph.graph import build_step_graph
from moiety.graph.op import Collective
from moiety.plan import Options, Schedule
from moiety.strategy.strategy import Strategy
from tests.scenarios import moe, small_model, tiered

CLUSTER = tiered(2, 4, per_node=2)
STRATEGY = Strategy(tp=2, attn_dp=2, ep=4)
MODEL = small_model(part=moe(shared=256))
OPTIONS = Options(two_batch_overlap=False)


def schedule(tokens: int) -> Schedule:
    return Schedule(num_microbatches=1, prefill_tokens=tokens, prompt_tokens=256, decode_sequences=0, context_tokens=0)


def test_constants_are_found_again_from_what_they_make_ops_take() -> None:
    base = load_calibration()
    lines = {
        kind: line.model_copy(
            update={
                "exponent": 1.0,
                "row_block": 1,
                "tiles": None,
                "query_tile": None,
                "overhead_s": 2e-5,
                "compute_efficiency": 0.3,
                "memory_efficiency": 0.4,
            }
        )
        for kind, line in base.roofline.items()
    }
    truth = base.model_copy(update={"roofline": lines})
    observations: list[Observation] = []
    for tokens in (256, 1024, 4096):
        graph = build_step_graph(MODEL, STRATEGY, schedule(tokens), OPTIONS, training=False)
        priced = Pricer(graph, CLUSTER, truth).priced_graph()
        observations += [
            Observation(each.op, each.seconds, decode=False)
            for each in (*priced.embedding, *priced.layers[0], *priced.head)
        ]
    found = refitted(
        base,
        observations,
        Bench(MODEL.moe, STRATEGY, CLUSTER, overlap_slowdown=1.25),
        name="found",
        source="a test",
        engine="moiety",
        step_overhead_s=0.001,
        reserve_bytes=7,
    )
    graph = build_step_graph(MODEL, STRATEGY, schedule(2048), OPTIONS, training=False)
    expected = Pricer(graph, CLUSTER, truth).priced_graph()
    predicted = Pricer(graph, CLUSTER, found).priced_graph()
    for right, ours in zip(expected.layers[0], predicted.layers[0], strict=True):
        is_reduced = isinstance(right.op.work, Collective) and right.op.work.kind not in {"dispatch", "combine"}
        # a ring over two tiers has two rates, of which one number is fitted
        assert ours.seconds == pytest.approx(right.seconds, rel=0.3 if is_reduced else 0.02), right.op.name
    assert found.engines["moiety"].step_overhead_s == 0.001
    assert found.engines["moiety"].reserve_bytes == 7
    assert found.expert_exchange.communication_sms == pytest.approx(CLUSTER.device.num_sms * 0.2)
    assert found.roofline["attention_decode_mla"] == base.roofline["attention_decode_mla"]
    assert found.roofline["dense_gemm"].basis == "measured"
    assert found.power == base.power


@given(
    st.tuples(*[st.floats(0, 10)] * 3).filter(lambda weights: sum(weights) > 1e-3),
    st.lists(st.tuples(*[st.floats(0.01, 100)] * 3), min_size=3, max_size=8),
)
def test_a_fit_is_never_negative_and_no_worse_than_the_truth(
    weights: tuple[float, float, float], terms: list[tuple[float, float, float]]
) -> None:
    seconds = [sum(a * b for a, b in zip(weights, each, strict=True)) for each in terms]
    found = non_negative_fit(terms, seconds)
    assert min(found) >= 0
    for each, right in zip(terms, seconds, strict=True):
        assert sum(a * b for a, b in zip(found, each, strict=True)) == pytest.approx(right, rel=1e-3)
