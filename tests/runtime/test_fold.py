"""Folding: laws of what a plan's division becomes on fewer ranks."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moiety.runtime.fold import fold, folded_nodes, folded_redundancy
from moiety.strategy.enumeration import enumerate_strategies
from moiety.strategy.legality import broken_rules
from moiety.strategy.strategy import Strategy, parse_strategy
from tests.scenarios import GQA, dense_model, moe, small_model

BIG = small_model(part=moe(64, 4), num_layers=16)
SMALL = small_model(GQA.model_copy(update={"num_heads": 4, "num_kv_heads": 2}), moe(8, 2), num_layers=2)
MODELS = {"itself": BIG, "a small copy": SMALL, "few experts": small_model(part=moe(6, 2))}
DIVIDED = ("attn_dp", "ep", "tp")
POWERS = st.sampled_from([1, 2, 4, 8])


@st.composite
def divisions(draw: st.DrawFn) -> Strategy:
    """Draw a strategy that is legal for the big model."""
    tp, attn_dp, pp, instances = (draw(POWERS) for _ in range(4))
    ep = draw(st.sampled_from([each for each in (1, 2, 4, 8, 16, 32, 64) if tp * attn_dp % each == 0]))
    strategy = Strategy(tp=tp, pp=pp, attn_dp=attn_dp, ep=ep, etp=tp * attn_dp // ep, instances=instances)
    assume(not broken_rules(BIG, strategy))
    return strategy


@given(strategy=divisions(), data=st.data(), name=st.sampled_from(sorted(MODELS)), per_rank=st.integers(0, 2))
def test_a_fold_is_legal_and_has_as_many_ranks_as_there_are(
    strategy: Strategy, data: st.DataObject, name: str, per_rank: int
) -> None:
    num_ranks = data.draw(st.integers(1, min(strategy.num_gpus, 24)))
    copies = per_rank * strategy.ep if strategy.ep > 1 else 0
    model = MODELS[name]
    made = fold(strategy, num_ranks, model, redundant_experts=copies, gpus_per_node=8)
    assert made.strategy.num_gpus == num_ranks
    assert not broken_rules(model, made.strategy, made.redundant_experts)
    assert made == fold(strategy, num_ranks, model, redundant_experts=copies, gpus_per_node=8)
    assert made.num_nodes * made.gpus_per_node == num_ranks
    assert made.gpus_per_node <= 8
    assert (made.num_nodes > 1) == (strategy.num_gpus > 8 and num_ranks > 1)
    assert (made.redundant_experts > 0) == (copies > 0 and made.strategy.ep > 1 and model.moe is not None)


@given(strategy=divisions(), data=st.data())
def test_nothing_grows_where_the_model_allows_every_division(strategy: Strategy, data: st.DataObject) -> None:
    num_ranks = data.draw(st.sampled_from([each for each in (1, 2, 4, 8, 16) if each <= strategy.num_gpus]))
    made = fold(strategy, num_ranks, BIG).strategy
    for name in Strategy.model_fields:
        assert getattr(made, name) <= getattr(strategy, name), name


@given(strategy=divisions(), data=st.data())
def test_no_other_legal_division_that_only_shrinks_keeps_more_alive(strategy: Strategy, data: st.DataObject) -> None:
    num_ranks = data.draw(st.sampled_from([each for each in (1, 2, 4, 8) if each <= strategy.num_gpus]))
    made = fold(strategy, num_ranks, BIG).strategy

    def alive(each: Strategy) -> int:
        return sum(getattr(strategy, name) > 1 and getattr(each, name) > 1 for name in DIVIDED)

    for each in enumerate_strategies(BIG, num_ranks):
        shrinks = all(getattr(each.strategy, name) <= getattr(strategy, name) for name in Strategy.model_fields)
        if each.is_legal and shrinks:
            assert alive(each.strategy) <= alive(made), each.strategy


@given(strategy=divisions())
def test_a_fold_onto_as_many_ranks_changes_nothing(strategy: Strategy) -> None:
    made = fold(strategy, strategy.num_gpus, BIG, gpus_per_node=8)
    assert made.strategy == strategy
    assert made.reasons == ()


@pytest.mark.parametrize(
    ("strategy", "num_gpus", "num_ranks", "becomes"),
    [
        ("ep64_tp2", 128, 8, "ep4_tp2"),
        ("ep64_tp2", 128, 4, "ep2_tp2"),
        ("ep64_tp2", 128, 2, "ep2_tp1"),  # tokens still travel; tp has gone
        ("tp1_dp128_ep64", 128, 4, "tp1_dp4_ep2"),
        ("tp8_dp16_ep128", 128, 4, "tp2_dp2_ep4"),
        ("tp8_dp16_ep64", 128, 4, "ep2_tp2"),  # expert tensor parallelism shrinks last, with tp
        ("tp8_dp8_ep64_pp2", 128, 8, "tp4_dp2_ep8"),
        ("tp8_pp16", 128, 4, "tp4"),  # stages go before tp shrinks
        ("tp8_pp16", 128, 16, "tp8_pp2"),
        ("ep8_tp1_x4", 32, 8, "ep8_tp1"),  # instances go first
        ("ep8_tp1_x4", 32, 16, "ep8_tp1_x2"),
    ],
)
def test_degrees_shrink_in_their_order(strategy: str, num_gpus: int, num_ranks: int, becomes: str) -> None:
    assert fold(parse_strategy(strategy, num_gpus), num_ranks, BIG).strategy == parse_strategy(becomes, num_ranks)


def test_what_the_model_forbids_is_named() -> None:
    made = fold(parse_strategy("ep16_tp1", 16), 6, BIG)
    assert made.strategy == parse_strategy("ep2_tp1_x3", 6)
    (reason,) = made.reasons
    assert reason.startswith("not attn_dp=6 ep=6: it breaks the rule experts-divide-over-ep: ep=6 does not divide")


def test_what_is_no_longer_divided_is_named() -> None:
    assert fold(parse_strategy("ep8_tp2_pp2_x2", 64), 2, BIG, gpus_per_node=8).reasons == (
        "no longer divided: tp=2, pp=2, instances=2",
    )
    assert fold(parse_strategy("ep8_tp2", 16), 1, BIG, redundant_experts=8, gpus_per_node=8).reasons == (
        "no longer divided: attn_dp=8, ep=8, tp=2",
        "a single expert rank holds no copies of its experts",
        "one rank spans no nodes",
    )


def test_a_dense_model_keeps_its_tensor_parallelism() -> None:
    assert fold(parse_strategy("tp8_pp2_x2", 32), 4, dense_model()).strategy == parse_strategy("tp4", 4)


def test_each_expert_rank_keeps_its_redundant_slots() -> None:
    before, after = parse_strategy("ep32_tp1", 32), parse_strategy("ep4_tp1", 4)
    assert folded_redundancy(before, after, BIG, 32) == 4  # one more on each
    assert folded_redundancy(before, after, SMALL, 32) == 4
    assert folded_redundancy(before, parse_strategy("ep3_tp1", 3), BIG, 32) == 5  # 64 + 5 slots over 3 ranks
    assert folded_redundancy(before, after, SMALL, 64 * 31) == 24  # a rank has no use for two copies of one expert


@given(num_gpus=st.integers(1, 256), per_node=st.integers(1, 8), num_ranks=st.integers(1, 64))
def test_nodes_are_as_few_as_hold_the_ranks(num_gpus: int, per_node: int, num_ranks: int) -> None:
    assume(num_ranks <= num_gpus)
    nodes = folded_nodes(num_gpus, per_node, num_ranks)
    assert num_ranks % nodes == 0
    assert num_ranks // nodes <= per_node
    assert (nodes > 1) == (num_gpus > per_node and num_ranks > 1)
