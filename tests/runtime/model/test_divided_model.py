"""What else holds of a divided model: sampling, BF16, what a rank reads and holds, what it counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tests.runtime.checkpoints import reference_model, save_checkpoint
from tests.runtime.model.cases import DIVISIONS, NEW, PROMPTS, case, run

if TYPE_CHECKING:
    from pathlib import Path


def test_prompts_in_chunks_copies_and_tensor_parallelism_sample_the_same_tokens(tmp_path: Path) -> None:
    folder = save_checkpoint("qwen3_moe", tmp_path / "qwen3_moe")
    drawn = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 5}
    divisions: list[dict[str, Any]] = [
        {"strategy": "tp1", "sampling": drawn},
        {"strategy": "tp1", "sampling": drawn, "max_tokens_per_step": 5},
        {"strategy": "tp2_dp2_ep4", "num_nodes": 2, "per_node": 2, "sampling": drawn, "max_tokens_per_step": 7},
        {"strategy": "tp1_dp4_ep4", "num_nodes": 2, "per_node": 2, "redundant": 4, "sampling": drawn, "overlap": True},
    ]
    outcomes = run([case(folder, **division) for division in divisions], tmp_path)
    tokens = [outcome[0]["outputs"] for outcome in outcomes]
    assert all(each == tokens[0] for each in tokens)
    other = run([case(folder, strategy="tp1", sampling={**drawn, "seed": 6})], tmp_path, ranks=1)[0][0]["outputs"]
    assert other != tokens[0]


def test_bfloat16_stays_within_its_rounding_of_transformers(tmp_path: Path) -> None:
    folder = save_checkpoint("glm4_moe", tmp_path / "glm4_moe", dtype=torch.bfloat16)
    with torch.no_grad():
        exact = reference_model(folder, torch.float32)(torch.tensor([PROMPTS[0]])).logits[0, -1]
        half = reference_model(folder, torch.bfloat16)(torch.tensor([PROMPTS[0]])).logits[0, -1].float()
    allowed = 2 * (half - exact).abs().max().item()
    names = ("one rank", "tp2", "tp2 dp2 ep4", "tp2 dp2 ep2 etp2", "dp4 ep4, hierarchical")
    cases = [case(folder, dtype="bf16", **DIVISIONS[name]) for name in names]
    for name, ranks in zip(names, run(cases, tmp_path), strict=True):
        error = (torch.tensor(ranks[0]["logits"]) - exact).abs().max().item()
        assert error <= allowed, f"{name}: {error} is more than twice transformers' own error"


def test_a_rank_holds_and_reads_only_what_it_owns(tmp_path: Path) -> None:
    folder = save_checkpoint("qwen3_moe", tmp_path / "qwen3_moe")
    whole, divided = run(
        [case(folder, strategy="tp1"), case(folder, strategy="tp2_dp2_ep4", num_nodes=2, per_node=2)], tmp_path
    )
    alone = whole[0]["weight_bytes"]
    for rank in divided:
        held = rank["weight_bytes"]
        assert held["expert_weights"] == alone["expert_weights"] / 4
        dense = held["dense_weights"] + held["embedding_and_head"]
        assert dense <= (alone["dense_weights"] + alone["embedding_and_head"]) / 2 * 1.05
        assert rank["bytes_read"] == sum(held.values())


def test_the_expert_counts_are_the_routers_choices(tmp_path: Path) -> None:
    folder = save_checkpoint("mixtral", tmp_path / "mixtral")
    cases = [case(folder, **DIVISIONS[name]) for name in ("one rank", "dp4 ep4, hierarchical")]
    alone, divided = run(cases, tmp_path)
    layers = alone[0]["counts"]
    assert layers.keys() == {"0", "1", "2"}
    for layer, counts in layers.items():
        extra = 4 * [PROMPTS[0]]  # every group computes the first prompt's logits once more
        assert sum(counts) == 2 * (sum(len(each) + NEW - 1 for each in PROMPTS) + len(extra[0]))
        together = [sum(each) for each in zip(*(rank["counts"][layer] for rank in divided), strict=True)]
        once = [a - b for a, b in zip(together, counts, strict=True)]
        assert sum(once) == 2 * 3 * len(PROMPTS[0])
        assert min(once) >= 0
