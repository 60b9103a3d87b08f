"""Every rule refuses what breaks it, by name and with degrees that do not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from moiety.model.catalog import catalog_models, load_catalog_model
from moiety.model.feed_forward import DenseFeedForward
from moiety.plan import Options
from moiety.strategy.enumeration import enumerate_strategies
from moiety.strategy.legality import RULES, broken_rules, divisors
from moiety.strategy.strategy import Strategy
from tests.scenarios import GQA, LINEAR, dense_model, graph_of, small_model

if TYPE_CHECKING:
    from moiety.model.model import Model

QUANTIZED = small_model().model_copy(update={"expert_dtype": "fp8"})
BREAKERS: list[tuple[str, Model, Strategy, str]] = [
    ("dense-model-has-no-expert-parallelism", dense_model(), Strategy(attn_dp=2, etp=2), "use instances"),
    ("experts-divide-over-ep", small_model(), Strategy(attn_dp=12, ep=12), "try 4, 8, 16"),
    ("expert-width-divides-over-etp", small_model(), Strategy(attn_dp=3, etp=3), "try 1, 2, 4"),
    ("expert-width-divides-over-etp", QUANTIZED, Strategy(tp=8, etp=8), "128-wide scale blocks"),
    ("heads-divide-over-tp", small_model(), Strategy(tp=5, ep=5), "try 2, 4, 8"),
    ("heads-divide-over-tp", small_model(LINEAR), Strategy(tp=32, ep=32), "num_attention_heads=16"),
    (
        "kv-heads-divide-over-tp",
        small_model(GQA.model_copy(update={"num_heads": 48, "num_kv_heads": 8})),
        Strategy(tp=12, etp=12),
        "num_key_value_heads=8",
    ),
    (
        "dense-width-divides-over-tp",
        small_model(GQA, DenseFeedForward(intermediate_size=1000)),
        Strategy(tp=16, etp=16),
        "try",
    ),
    ("stages-have-layers", small_model(num_layers=3), Strategy(pp=4), "pp=4"),
    ("expert-mesh-nests", small_model(), Strategy(tp=2, attn_dp=3, ep=2, etp=3), "must divide one another"),
]


@pytest.mark.parametrize(("rule", "model", "strategy", "said"), BREAKERS, ids=[each[0] for each in BREAKERS])
def test_a_rule_refuses_what_breaks_it(rule: str, model: Model, strategy: Strategy, said: str) -> None:
    reasons = {each.rule: each.reason for each in broken_rules(model, strategy)}
    assert rule in reasons
    assert said in reasons[rule]


def test_every_rule_is_tried() -> None:
    assert {each[0] for each in BREAKERS} == set(RULES)


def test_redundant_experts_count_as_slots() -> None:
    strategy = Strategy(attn_dp=5, ep=5)
    assert broken_rules(small_model(), strategy)
    assert not broken_rules(small_model(), strategy, redundant_experts=4)


def test_suggested_degrees_divide() -> None:
    reason = broken_rules(small_model(), Strategy(attn_dp=7, ep=7))[0].reason
    suggested = re.search(r"try (.*)", reason)
    assert suggested
    assert all(16 % int(each) == 0 for each in suggested[1].split(", "))


@pytest.mark.parametrize("number", [1, 2, 12, 97, 360])
def test_divisors_are_all_that_divide(number: int) -> None:
    assert divisors(number) == [each for each in range(1, number + 1) if number % each == 0]


@pytest.mark.parametrize("name", catalog_models())
@pytest.mark.parametrize("num_gpus", [8, 48, 128])
def test_what_is_legal_can_be_built(name: str, num_gpus: int) -> None:
    model = load_catalog_model(name)
    legal = [each.strategy for each in enumerate_strategies(model, num_gpus) if each.is_legal]
    assert legal
    for strategy in legal[:: max(len(legal) // 5, 1)]:
        for phase in ("prefill", "decode", "mixed", "training"):
            graph = graph_of(model, strategy, phase, Options(dense_parameter_sharding=True))
            assert len(graph.layers) == len(model.blocks)


def test_a_rank_has_no_more_slots_than_there_are_experts() -> None:
    model = small_model()
    assert model.moe is not None
    experts = model.moe.num_experts
    for extra, broken in ((experts, False), (experts + 2, True)):
        found = broken_rules(model, Strategy(attn_dp=2, ep=2), extra)
        assert any("more than the" in rule.reason for rule in found) is broken
