"""What else holds of a divided model: sampling, BF16, what a rank reads and holds, what it counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.runtime.checkpoints import reference_model, save_checkpoint
from tests.runtime.model.cases import DIVISIONS, NEW, PROMPTS, case, run

if TYPE_CHECKING:
    from pathlib import Path

Ranks = list[Any]
"""What each rank reports of a case; None of those that have no part in it."""
DRAWN = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 5}
SPREAD: dict[str, Any] = {"num_nodes": 2, "per_node": 2}
SAMPLED: dict[str, dict[str, Any]] = {
    "whole": {"strategy": "tp1", "sampling": DRAWN},
    "in chunks": {"strategy": "tp1", "sampling": DRAWN, "max_tokens_per_step": 5},
    "divided": {"strategy": "tp2_dp2_ep4", **SPREAD, "sampling": DRAWN, "max_tokens_per_step": 7},
    "copies": {"strategy": "tp1_dp4_ep4", **SPREAD, "redundant": 4, "sampling": DRAWN, "overlap": True},
    "another seed": {"strategy": "tp1", "sampling": {**DRAWN, "seed": 6}},
}
HALF = ("one rank", "tp2", "tp2 dp2 ep4", "tp2 dp2 ep2 etp2", "dp4 ep4, hierarchical")
HELD: dict[str, dict[str, Any]] = {
    "whole": {"strategy": "tp1"},
    "divided": {"strategy": "tp2_dp2_ep4", **SPREAD},
}
COUNTED = ("one rank", "dp4 ep4, hierarchical")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a GLM-4-MoE in BF16."""
    return save_checkpoint("glm4_moe", tmp_path_factory.mktemp("half") / "glm4_moe", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def outcomes(half: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Ranks]:
    """Return what the ranks report of every case: the same ranks take all, as starting takes long."""
    folder = tmp_path_factory.mktemp("divided")
    qwen, mixtral = (save_checkpoint(name, folder / name) for name in ("qwen3_moe", "mixtral"))
    cases = {("sampled", name): case(qwen, **division) for name, division in SAMPLED.items()}
    cases |= {("half", name): case(half, dtype="bf16", **DIVISIONS[name]) for name in HALF}
    cases |= {("held", name): case(qwen, **division) for name, division in HELD.items()}
    cases |= {("counted", name): case(mixtral, **DIVISIONS[name]) for name in COUNTED}
    return dict(zip(cases, run(list(cases.values())), strict=True))


def test_prompts_in_chunks_copies_and_tensor_parallelism_sample_the_same_tokens(
    outcomes: dict[tuple[str, str], Ranks],
) -> None:
    *same, other = (outcomes["sampled", name][0]["outputs"] for name in SAMPLED)
    assert all(each == same[0] for each in same)
    assert other != same[0]


def test_bfloat16_stays_within_its_rounding_of_transformers(half: Path, outcomes: dict[tuple[str, str], Ranks]) -> None:
    with torch.no_grad():
        exact = reference_model(half, torch.float32)(torch.tensor([PROMPTS[0]])).logits[0, -1]
        rounded = reference_model(half, torch.bfloat16)(torch.tensor([PROMPTS[0]])).logits[0, -1].float()
    allowed = 2 * (rounded - exact).abs().max().item()
    for name in HALF:
        error = (torch.tensor(outcomes["half", name][0]["logits"]) - exact).abs().max().item()
        assert error <= allowed, f"{name}: {error} is more than twice transformers' own error"


def test_a_rank_holds_and_reads_only_what_it_owns(outcomes: dict[tuple[str, str], Ranks]) -> None:
    alone = outcomes["held", "whole"][0]["weight_bytes"]
    for rank in outcomes["held", "divided"]:
        held = rank["weight_bytes"]
        assert held["expert_weights"] == alone["expert_weights"] / 4
        dense = held["dense_weights"] + held["embedding_and_head"]
        assert dense <= (alone["dense_weights"] + alone["embedding_and_head"]) / 2 * 1.05
        assert rank["bytes_read"] == sum(held.values())


def test_the_expert_counts_are_the_routers_choices(outcomes: dict[tuple[str, str], Ranks]) -> None:
    alone, divided = (outcomes["counted", name] for name in COUNTED)
    layers = alone[0]["counts"]
    assert layers.keys() == {"0", "1", "2"}
    for layer, counts in layers.items():
        extra = 4 * [PROMPTS[0]]  # every group computes the first prompt's logits once more
        assert sum(counts) == 2 * (sum(len(each) + NEW - 1 for each in PROMPTS) + len(extra[0]))
        together = [sum(each) for each in zip(*(rank["counts"][layer] for rank in divided), strict=True)]
        once = [a - b for a, b in zip(together, counts, strict=True)]
        assert sum(once) == 2 * 3 * len(PROMPTS[0])
        assert min(once) >= 0
