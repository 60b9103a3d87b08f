"""Ranks of a plan with experts in MXFP4 hold a checkpoint's codes and scales, and give the tokens of their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from moiety.cost.arena import plan_arena
from moiety.cost.expansion import Expansion
from moiety.cost.memory import layer_weight_bytes
from moiety.cost.workspaces import Workspaces
from moiety.graph.graph import build_graph
from moiety.plan import Plan, Schedule
from tests.runtime.checkpoints import greedy_continuation, reference_model, save_checkpoint
from tests.runtime.model.cases import DIVISIONS, PROMPTS, case, run
from tests.runtime.mxfp4_checkpoints import save_dequantised, save_mxfp4

if TYPE_CHECKING:
    from pathlib import Path

NEW = 4
SIZES: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 192, "head_dim": 64}
"""Four parts of a width of 192 end inside a group of 32."""
ROUNDING = {"fp32": 2e-6, "bf16": 2.0**-6}
"""Of the largest logit, by the activations' format: products add in another order where weights lie otherwise."""
DIVIDED = ("one rank", "tp2", "dp4 ep4, copies", "tp2 dp2 ep2 etp2", "tp2 dp2 etp4")

Rank = dict[str, Any]
Outcomes = dict[tuple[str, str], tuple[Plan, list[Rank], list[Rank]]]
"""By format of activations and division: the plan, what ranks report that hold codes, and such that hold numbers."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the checkpoint as it is saved, in MXFP4, and dequantised."""
    top = tmp_path_factory.mktemp("mxfp4")
    plain = save_checkpoint("gpt_oss", top / "plain", **SIZES)
    return {
        "plain": plain,
        "mxfp4": save_mxfp4(plain, top / "mxfp4"),
        "dequantised": save_dequantised(plain, top / "dequantised"),
    }


@pytest.fixture(scope="module")
def outcomes(folders: dict[str, Path]) -> Outcomes:
    """Return what the same ranks do with codes and with numbers."""
    keys = [("fp32", division) for division in DIVIDED] + [("bf16", "tp2 dp2 etp4")]
    held = [
        case(folders["mxfp4"], new=NEW, dtype=dtype, experts="mxfp4", **DIVISIONS[division]) for dtype, division in keys
    ]
    plain = [case(folders["dequantised"], new=NEW, dtype=dtype, **DIVISIONS[division]) for dtype, division in keys]
    ranks = [[rank for rank in each if rank] for each in run(held + plain)]
    plans = [Plan.model_validate(each["plan"]) for each in held]
    return dict(zip(keys, zip(plans, ranks[: len(keys)], ranks[len(keys) :], strict=True), strict=True))


def test_tokens_and_logits_are_those_of_the_dequantised_checkpoint(
    folders: dict[str, Path], outcomes: Outcomes
) -> None:
    reference = reference_model(folders["dequantised"])
    expected = [greedy_continuation(reference, prompt, NEW) for prompt in PROMPTS]
    prompt = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        logits, told = (model(prompt).logits[0, -1] for model in (reference, reference_model(folders["plain"])))
    assert (told - logits).abs().max() > 1e-3, "the test tells rounded weights from others"
    for key, (_, held, plain) in outcomes.items():
        for one, other in zip(held, plain, strict=True):
            assert key[0] != "fp32" or one["outputs"] == other["outputs"] == expected, key
            # the same numbers, which lie row by row in one and column by column in the other
            found, same = torch.tensor(one["logits"]), torch.tensor(other["logits"])
            torch.testing.assert_close(found, same, rtol=0, atol=ROUNDING[key[0]] * same.abs().max().item())


def test_what_ranks_hold_and_read_is_what_the_plan_counts(outcomes: Outcomes) -> None:
    for key, (plan, held, plain) in outcomes.items():
        graph = build_graph(plan.model, plan.pools[0], plan.options)
        planned = sum(layer_weight_bytes(graph.layers[block])[1] for block in plan.model.layer_blocks)
        for one, other in zip(held, plain, strict=True):
            # biases, which it does not count, and groups that a division cuts
            assert one["weight_bytes"]["expert_weights"] == pytest.approx(planned, rel=0.1), key
            assert one["weight_bytes"]["expert_weights"] < 0.35 * other["weight_bytes"]["expert_weights"], key
            assert one["weight_bytes"]["dense_weights"] == other["weight_bytes"]["dense_weights"], key
    _, (rank,), _ = outcomes["fp32", "one rank"]
    assert rank["bytes_read"] == sum(rank["weight_bytes"].values()), "as it is in the files, once"


def test_the_plan_has_the_room_that_experts_are_expanded_in(outcomes: Outcomes) -> None:
    for key, (plan, held, plain) in outcomes.items():
        graph = build_graph(plan.model, plan.pools[0], plan.options)
        expansion = Expansion(on_cpu=True, activations=plan.options.dtypes.activations)
        planned = max(expansion.room_bytes(weight) for ops in graph.layers for op in ops for weight in op.weights)
        # a part that begins or ends inside a group has its scale, too
        assert max(rank["expanded_bytes"] for rank in held) == pytest.approx(planned, rel=0.02), key
        assert {rank["expanded_bytes"] for rank in plain} == {0}, key


def test_the_planned_arena_of_a_step_is_the_measured_one(outcomes: Outcomes) -> None:
    for key, (plan, held, _) in outcomes.items():
        pool = plan.pools[0]
        decoding = Schedule(
            num_microbatches=1,
            prefill_tokens=0,
            prompt_tokens=0,
            decode_sequences=len(PROMPTS) // pool.strategy.num_groups,
            context_tokens=max(map(len, PROMPTS)) + NEW,
        )
        graph = build_graph(plan.model, pool.model_copy(update={"role": "decode", "schedule": decoding}), plan.options)
        planned = plan_arena(graph, Workspaces.on(plan.cluster.device, graph)).peak_bytes
        assert planned == pytest.approx(max(rank["arena"]["packed_bytes"] for rank in held), rel=0.06), key
