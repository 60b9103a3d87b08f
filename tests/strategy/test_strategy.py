"""Strategies: groups that tile the ranks, and names that are read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.strategy.enumeration import enumerate_strategies
from moiety.strategy.strategy import AXES, Strategy, parse_strategy
from tests.scenarios import dense_model, moe, small_model

ALL_AXES = ("cp", *AXES)
MODEL = small_model(part=moe(num_experts=64), num_layers=24)


@st.composite
def strategies(draw: st.DrawFn) -> Strategy:
    degree = st.sampled_from([1, 2, 3, 4, 6])
    tp, attn_dp = draw(degree), draw(degree)
    stage = tp * attn_dp
    ep = draw(st.sampled_from([d for d in range(1, stage + 1) if stage % d == 0]))
    instances = draw(degree)
    wide = [attn_dp * d for d in range(2, instances + 1) if instances % d == 0]
    cp = draw(st.sampled_from([d for d in range(1, attn_dp + 1) if attn_dp % d == 0] + wide))
    return Strategy(tp=tp, attn_dp=attn_dp, ep=ep, etp=stage // ep, pp=draw(degree), instances=instances, cp=cp)


@given(strategies(), st.sampled_from(ALL_AXES), st.integers(0, 100))
def test_groups_of_every_axis_tile_the_ranks(strategy: Strategy, axis: str, first: int) -> None:
    groups = strategy.groups(axis, first)
    members = sorted(rank for group in groups for rank in group)
    assert members == list(range(first, first + strategy.num_gpus))
    assert len({len(group) for group in groups}) == 1


@given(strategies(), st.sampled_from(ALL_AXES))
def test_coordinates_invert_groups(strategy: Strategy, axis: str) -> None:
    for group in strategy.groups(axis):
        assert [strategy.coordinates(rank)[axis] for rank in group] == list(range(len(group)))


@given(strategies())
def test_groups_of_one_axis_agree_on_all_that_do_not_depend_on_it(strategy: Strategy) -> None:
    for axis, fixed in (("tp", ("attn_dp", "pp", "instance")), ("pp", ("stage", "instance")), ("ep", ("etp", "pp"))):
        for group in strategy.groups(axis):
            places = [strategy.coordinates(rank) for rank in group]
            for other in fixed:
                assert len({place[other] for place in places}) == 1


@given(strategies())
def test_every_name_is_read_back(strategy: Strategy) -> None:
    assert parse_strategy(strategy.name, strategy.num_gpus) == strategy


@given(strategies())
def test_attention_groups_are_shared_out_over_those_that_have_sequences_of_their_own(strategy: Strategy) -> None:
    groups = strategy.groups("cp")
    assert len({len(group) for group in groups} | {strategy.cp}) == 1
    assert len(groups) == strategy.num_groups * strategy.tp * strategy.pp


@pytest.mark.parametrize("num_gpus", [1, 6, 8, 12, 16, 64, 96, 128])
@pytest.mark.parametrize("model", [MODEL, dense_model()], ids=["moe", "dense"])
def test_every_enumerated_strategy_has_a_name_of_its_own_that_is_read_back(model: object, num_gpus: int) -> None:
    candidates = list(enumerate_strategies(model, num_gpus))
    for candidate in candidates:
        assert candidate.strategy.num_gpus == num_gpus
        assert parse_strategy(candidate.strategy.name, num_gpus) == candidate.strategy
    assert len({candidate.strategy.name for candidate in candidates}) == len(candidates)


@pytest.mark.parametrize(
    ("text", "num_gpus", "expected"),
    [
        ("ep64_tp2", 128, Strategy(tp=2, attn_dp=64, ep=64, etp=2)),
        ("tp8_pp16", 128, Strategy(tp=8, pp=16, etp=8)),
        ("tp1_dp128_ep128", 128, Strategy(attn_dp=128, ep=128)),
        ("ep8", 16, Strategy(attn_dp=8, ep=8, instances=2)),
        ("EP4_TP2", 4, Strategy(tp=2, attn_dp=2, ep=4)),
        ("tp2_dp4", 8, Strategy(tp=2, etp=2, instances=4)),
        ("tp2_cp2_pp2", 8, Strategy(tp=2, attn_dp=2, etp=4, pp=2, cp=2)),
        ("ep8_tp2_cp4", 16, Strategy(tp=2, attn_dp=8, ep=8, etp=2, cp=4)),
    ],
)
def test_names_are_read_as_engines_mean_them(text: str, num_gpus: int, expected: Strategy) -> None:
    assert parse_strategy(text, num_gpus) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ep",
        "ep0",
        "ep64_ep2",
        "tp-1",
        "tpx",
        "ep99999999",
        "tp3",
        "x9999999",
        "ep6_tp4",
        "ep64_tp2_x7",
        "tp٣",
        "ep64_cp48",
    ],
)
def test_names_that_mean_nothing_are_refused_in_one_message(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_strategy(text, 128)
    assert "strategy" in str(caught.value)


def test_meshes_over_different_gpus_are_refused() -> None:
    with pytest.raises(ValueError, match="must cover the same GPUs"):
        Strategy(tp=2, attn_dp=2, ep=2, etp=1)
