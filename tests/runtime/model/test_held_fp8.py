"""Ranks of a plan with FP8 weights hold codes and scales, and give the tokens of the numbers that these stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

from moiety.cost.arena import plan_arena
from moiety.cost.expansion import Expansion
from moiety.cost.memory import layer_weight_bytes
from moiety.cost.workspaces import Workspaces
from moiety.graph.graph import build_graph
from moiety.plan import Plan, Schedule
from tests.runtime.checkpoints import greedy_continuation, reference_model, save_checkpoint
from tests.runtime.fp8_checkpoints import save_dequantised, save_fp8
from tests.runtime.model.cases import DIVISIONS, PROMPTS, case, run

if TYPE_CHECKING:
    from pathlib import Path

NEW = 4
SIZES: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 192}
NARROW: dict[str, Any] = {**SIZES, "moe_intermediate_size": 160}
"""No size is a multiple of 128, and every division cuts a block."""
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": SIZES,
    "deepseek_v3": {**NARROW, "q_lora_rank": 160, "kv_lora_rank": 144},
    "gpt_oss": {**SIZES, "head_dim": 64},
    "qwen2_moe": {**NARROW, "shared_expert_intermediate_size": 160},
}
DIVIDED = ("one rank", "tp2", "tp4, more than key heads", "dp4 ep4, copies", "tp2 dp2 ep2 etp2", "pp2")
AS_QUANTISED = ("tp2", "tp2 dp2 etp4")
"""Divisions that checkpoints in another format are run in."""
IN_BF16 = ("mixtral", "deepseek_v3")
"""What is run with activations in BF16 too, which take a row of blocks in FP32 beside the matrix."""
ARENA_TOLERANCE = 0.06
"""Of an arena: a division may cut blocks of experts into smaller ones, which take less in FP32 than is planned."""
KEPT = "self_attn"
"""What one of the checkpoints in FP8 keeps as it was."""


class Checkpoints(NamedTuple):
    """A model as it is saved, and as FP8 makes it."""

    plain: Path
    fp8: Path
    dequantised: Path


Key = tuple[str, str, str]
Outcomes = dict[Key, tuple[Plan, list[dict[str, Any] | None]]]
"""By model, way of saving it and division: the plan, and what each rank reports."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoints]:
    folder = tmp_path_factory.mktemp("fp8")
    found: dict[str, Checkpoints] = {}
    for name, sizes in KINDS.items():
        plain = save_checkpoint(name, folder / name, **sizes)
        kept = {"kept": KEPT} if name == "qwen2_moe" else {}
        fp8 = save_fp8(plain, folder / f"{name} fp8", **kept)
        found[name] = Checkpoints(plain, fp8, save_dequantised(plain, folder / f"{name} dequantised", **kept))
    return found


@pytest.fixture(scope="module")
def outcomes(checkpoints: dict[str, Checkpoints]) -> Outcomes:
    """Return what ranks do with both ways of saving; the same ranks take all, as starting takes long."""
    keys = [(name, "fp8", division) for name in KINDS for division in DIVIDED]
    keys += [(name, "plain", division) for name in KINDS if name != "qwen2_moe" for division in AS_QUANTISED]
    cases = [
        case(getattr(checkpoints[name], saved), new=NEW, weights="fp8", **DIVISIONS[division])
        for name, saved, division in keys
    ]
    in_bf16 = [(f"{name} in bf16", "fp8", division) for name in IN_BF16 for division in AS_QUANTISED]
    cases += [
        case(checkpoints[name.split()[0]].fp8, new=NEW, dtype="bf16", weights="fp8", **DIVISIONS[division])
        for name, _, division in in_bf16
    ]
    keys += in_bf16
    ranks = run(cases)
    plans = [Plan.model_validate(each["plan"]) for each in cases]
    return dict(zip(keys, zip(plans, ranks, strict=True), strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_every_division_gives_the_tokens_and_logits_of_the_dequantised_checkpoint(
    name: str, checkpoints: dict[str, Checkpoints], outcomes: Outcomes
) -> None:
    reference = reference_model(checkpoints[name].dequantised)
    expected = [greedy_continuation(reference, prompt, NEW) for prompt in PROMPTS]
    with torch.no_grad():
        logits = reference(torch.tensor([PROMPTS[0]])).logits[0, -1]
    told = reference_model(checkpoints[name].plain)(torch.tensor([PROMPTS[0]])).logits[0, -1]
    assert (told - logits).abs().max() > 1e-3, "the test tells rounded weights from others"
    for (_, saved, division), (_, ranks) in ((key, each) for key, each in outcomes.items() if key[0] == name):
        for rank in (each for each in ranks if each is not None):
            assert rank["outputs"] == expected, (saved, division)
            if rank["logits"] is not None:
                torch.testing.assert_close(
                    torch.tensor(rank["logits"]), logits, rtol=0, atol=2e-6 * logits.abs().max().item(), msg=division
                )


def test_what_ranks_hold_is_what_the_plan_counts(outcomes: Outcomes) -> None:
    for (name, saved, division), (plan, ranks) in outcomes.items():
        if name == "qwen2_moe" or plan.pools[0].strategy.pp > 1:
            continue
        graph = build_graph(plan.model, plan.pools[0], plan.options)
        planned = [layer_weight_bytes(graph.layers[block]) for block in plan.model.layer_blocks]
        for rank in (each for each in ranks if each is not None):
            held = rank["weight_bytes"]
            where = (name, saved, division)
            assert held["expert_weights"] == pytest.approx(sum(each for _, each in planned), rel=0.1), where
            assert held["dense_weights"] == pytest.approx(sum(each for each, _ in planned), rel=0.1), where


def test_the_plan_has_the_room_that_weights_are_expanded_in(outcomes: Outcomes) -> None:
    for key, (plan, ranks) in outcomes.items():
        graph = build_graph(plan.model, plan.pools[0], plan.options)
        expansion = Expansion(on_cpu=True, activations=plan.options.dtypes.activations)
        planned = max(expansion.room_bytes(weight) for ops in graph.layers for op in ops for weight in op.weights)
        # parts of a block may be smaller than those of the rank that holds most
        assert max(rank["expanded_bytes"] for rank in ranks if rank is not None) == planned > 0, key


def test_the_planned_arena_of_a_step_is_the_measured_one(outcomes: Outcomes) -> None:
    for key, (plan, ranks) in outcomes.items():
        pool = plan.pools[0]
        if pool.strategy.pp > 1 or key[0] == "qwen2_moe":
            continue
        decoding = Schedule(
            num_microbatches=1,
            prefill_tokens=0,
            prompt_tokens=0,
            decode_sequences=len(PROMPTS) // pool.strategy.num_groups,
            context_tokens=len(PROMPTS[0]) + NEW,
        )
        graph = build_graph(plan.model, pool.model_copy(update={"role": "decode", "schedule": decoding}), plan.options)
        workspaces = Workspaces.on(plan.cluster.device, graph)
        measured = max(rank["arena"]["packed_bytes"] for rank in ranks if rank is not None)
        assert plan_arena(graph, workspaces).peak_bytes == pytest.approx(measured, rel=ARENA_TOLERANCE), key


def test_what_an_fp8_checkpoint_keeps_in_another_format_is_held_as_it_is(outcomes: Outcomes) -> None:
    plan, ranks = outcomes["qwen2_moe", "fp8", "one rank"]
    graph = build_graph(plan.model, plan.pools[0], plan.options)
    planned = [layer_weight_bytes(graph.layers[block])[0] for block in plan.model.layer_blocks]
    assert ranks[0] is not None
    attention = sum(
        weight.size_bytes
        for block in plan.model.layer_blocks
        for op in graph.layers[block]
        for weight in op.weights
        if weight.name in {"qkv_proj.weight", "o_proj.weight"}
    )
    assert attention > 0
    assert ranks[0]["weight_bytes"]["dense_weights"] == pytest.approx(sum(planned) + 3 * attention, rel=0.1)


def test_fp8_is_read_as_it_is_and_no_rank_reads_a_weight_twice(outcomes: Outcomes) -> None:
    for (name, saved, division), (_, ranks) in outcomes.items():
        if (saved, division) == ("fp8", "one rank"):
            assert ranks[0] is not None
            assert ranks[0]["bytes_read"] == sum(ranks[0]["weight_bytes"].values()), name
