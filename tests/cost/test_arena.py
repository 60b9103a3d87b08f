"""The arena: buffers that live together lie apart."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.cost.arena import ALIGNMENT, Lifetime, first_fit_peak, graph_lifetimes, live_peak, pack, plan_arena
from moiety.plan import Options, Phase
from moiety.strategy.strategy import Strategy
from tests.scenarios import ATTENTIONS, graph_of, moe, small_model

if TYPE_CHECKING:
    from moiety.graph.op import Op


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    number = draw(st.integers(1, 24))
    found: list[Lifetime] = []
    for index in range(number):
        first = draw(st.integers(0, 20))
        found.append(
            Lifetime(f"b{index}", draw(st.integers(1, 64)) * ALIGNMENT, first, first + draw(st.integers(0, 9)))
        )
    return found


@given(lifetimes())
def test_packed_buffers_that_live_together_do_not_overlap(buffers: list[Lifetime]) -> None:
    packed = pack(buffers)
    assert sorted(each.name for each in packed) == sorted(each.name for each in buffers)
    for one, other in itertools.combinations(packed, 2):
        if one.first_op <= other.last_op and other.first_op <= one.last_op:
            assert (
                one.offset_bytes + one.size_bytes <= other.offset_bytes
                or other.offset_bytes + other.size_bytes <= one.offset_bytes
            )


@given(lifetimes())
def test_no_packing_is_smaller_than_what_lives_at_once(buffers: list[Lifetime]) -> None:
    live = live_peak(buffers)
    by_hand = max(sum(b.size_bytes for b in buffers if b.first_op <= moment <= b.last_op) for moment in range(31))
    assert live == by_hand
    packed = max(b.offset_bytes + b.size_bytes for b in pack(buffers))
    assert live <= packed <= first_fit_peak(buffers)


@pytest.mark.parametrize("phase", ["prefill", "decode", "mixed"])
@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_a_layer_s_arena_is_no_larger_than_what_an_allocator_would_need(attention: str, phase: Phase) -> None:
    model = small_model(ATTENTIONS[attention], moe(shared=512))
    for strategy in (Strategy(), Strategy(tp=2, attn_dp=4, ep=8)):
        for overlap in (False, True):
            arena = plan_arena(graph_of(model, strategy, phase, Options(two_batch_overlap=overlap)))
            assert arena.live_bytes <= arena.peak_bytes <= arena.unplanned_peak_bytes
            assert 0 <= arena.fragmentation < 0.1


def _last_use(ops: tuple[Op, ...], name: str) -> int:
    return max((index for index, op in enumerate(ops) if name in op.inputs), default=len(ops) - 1)


@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_a_buffer_lives_until_its_last_user(attention: str) -> None:
    graph = graph_of(small_model(ATTENTIONS[attention]), Strategy(), "mixed", Options(two_batch_overlap=False))
    ops = graph.layers[0]
    lives = {each.name: each for each in graph_lifetimes(graph)[0]}
    for index, op in enumerate(ops):
        assert lives[op.name].first_op == index
        assert lives[op.name].last_op == _last_use(ops, op.name)
    assert lives["input"].last_op == len(ops) - 1
