"""Context parallelism in plans of training: the same work in parts, sound plans, refused elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moiety.cli.run_plan import check_runnable
from moiety.errors import InputError
from moiety.graph.graph import build_step_graph
from moiety.graph.op import Collective
from moiety.plan import Options, Schedule
from moiety.search.judge import Refused, judge
from moiety.search.options import default_options
from moiety.search.search import search
from moiety.strategy.strategy import Strategy, parse_strategy
from moiety.verify.verify import verify_plan
from tests.scenarios import (
    ATTENTIONS,
    CALIBRATION,
    dense_model,
    evaluated,
    moe,
    prefill_load,
    scenario,
    small_model,
    training_load,
)

SCHEDULE = Schedule(num_microbatches=2, prefill_tokens=4096, prompt_tokens=4096, decode_sequences=0, context_tokens=0)


@pytest.mark.parametrize("strategy", ["ep8_tp2_cp2", "tp2_dp8_ep8_cp8", "tp1_dp8_ep8_cp4_x2", "tp1_dp4_ep4_cp8_x4"])
def test_a_plan_with_context_parallelism_passes_its_verification(strategy: str) -> None:
    plan = evaluated(scenario(small_model(), "h100x16", training_load(length=2048)), strategy)
    assert [each for each in verify_plan(plan, CALIBRATION) if each.severity == "error"] == []
    assert plan.pools[0].rank_groups["cp"] == plan.pools[0].strategy.groups("cp")


def test_a_dense_model_is_divided_too() -> None:
    plan = evaluated(scenario(dense_model(), "h100x16", training_load(length=2048)), "tp2_cp4_x2")
    assert [each for each in verify_plan(plan, CALIBRATION) if each.severity == "error"] == []


@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_every_gpu_computes_an_equal_part_and_gets_all_keys_or_states(attention: str) -> None:
    model = small_model(ATTENTIONS[attention], moe())
    whole, parts = (
        build_step_graph(model, Strategy(attn_dp=4, ep=4, cp=cp), SCHEDULE, Options(), training=True) for cp in (1, 4)
    )
    for ops, others in zip((*whole.layers, *whole.backward), (*parts.layers, *parts.backward), strict=True):
        computed = {op.name: op.flops for op in others if not op.is_communication}
        assert computed == {op.name: pytest.approx(op.flops / 4) for op in ops if not op.is_communication}
    gathers = [
        op.work for ops in parts.layers for op in ops if isinstance(op.work, Collective) and op.work.axis == "cp"
    ]
    returns = [
        op.work for ops in parts.backward for op in ops if isinstance(op.work, Collective) and op.work.axis == "cp"
    ]
    assert [each.kind for each in gathers] == ["all_gather"] * len(model.blocks)
    assert [each.kind for each in returns] == ["reduce_scatter"] * len(model.blocks)
    assert all(back.payload_bytes == 2 * each.payload_bytes for each, back in zip(gathers, returns, strict=True))


def test_states_are_gathered_whatever_the_length_and_with_what_the_delta_rule_does_to_them() -> None:
    def gathered(attention: str, length: int) -> float:
        schedule = SCHEDULE.model_copy(update={"prefill_tokens": length, "prompt_tokens": length})
        strategy = Strategy(attn_dp=4, ep=4, cp=4)
        graph = build_step_graph(small_model(ATTENTIONS[attention]), strategy, schedule, Options(), training=True)
        works = [op.work for op in graph.layers[0] if isinstance(op.work, Collective) and op.work.axis == "cp"]
        return works[0].payload_bytes

    assert gathered("mamba", 4096) == gathered("mamba", 65_536) == 2 * 4 * 16 * 128 * 64 * 4
    assert gathered("linear", 4096) == 2 * 4 * 16 * (64 * 64 + 64 * 64) * 4
    assert gathered("gqa", 65_536) == 16 * gathered("gqa", 4096)


def test_parts_of_sequences_keep_less_for_the_backward_pass() -> None:
    case = scenario(small_model(), "h100x16", training_load(tokens=64 * 8192, length=8192))
    options = default_options(case).model_copy(update={"activation_checkpointing": False})
    per_token: list[float] = []
    for strategy in ("ep16_tp1", "ep16_tp1_cp4"):
        pool = evaluated(case, strategy, options).pools[0]
        assert pool.memory is not None
        per_token.append(pool.memory.bytes_by_kind["stored_activations"] / pool.schedule.prefill_tokens)
    assert per_token[1] == pytest.approx(per_token[0] / 4, rel=0.05)


def test_only_training_divides_sequences_and_only_into_equal_halves() -> None:
    strategy = parse_strategy("ep16_tp1_cp4", 16)
    for load, rule in ((prefill_load(), "context-parallelism-trains"), (training_load(length=1020), "over-cp")):
        case = scenario(small_model(), "h100x16", load)
        refused = judge(case, strategy, default_options(case))
        assert isinstance(refused, Refused)
        assert rule in refused.rule
        with pytest.raises(InputError, match=refused.rule):
            search(case, default_options(case), pinned=strategy)


def test_the_search_tries_parts_of_a_thousand_tokens_and_more() -> None:
    case = scenario(small_model(num_layers=2), "h100x8", training_load(tokens=32_768, length=2048))
    short = replace(case, workload=training_load(tokens=32_768, length=1024))
    tried, without = (search(each, default_options(each)).summary for each in (case, short))
    assert any("cp2" in line.strategy for line in tried.ranking)
    assert not any("cp" in line.strategy for line in without.ranking)
    assert tried.num_enumerated > without.num_enumerated


def test_the_run_time_refuses_it_by_name() -> None:
    plan = evaluated(scenario(small_model(), "h100x16", training_load(length=2048)), "ep16_tp1_cp2")
    with pytest.raises(InputError, match="context parallelism is planned but not executed"):
        check_runnable(plan, "p.json")
