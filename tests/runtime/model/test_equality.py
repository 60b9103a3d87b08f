"""The plan at work gives transformers' own tokens, for every architecture and every way to divide it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from moiety.runtime.job import Job
from moiety.runtime.launch import launch
from tests.runtime.checkpoints import CONFIGS, greedy_continuation, reference_model, save_checkpoint
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [9, 8, 7], [100, 50, 3, 2, 1, 77], [130]]
NEW = 10
DIVISIONS: dict[str, dict[str, Any]] = {
    "one rank": {"strategy": "tp1"},
    "tp2": {"strategy": "tp2", "per_node": 2},
    "tp4, more than key heads": {"strategy": "tp4", "per_node": 4},
    "ep2, experts whole, attention divided": {"strategy": "tp2_dp1_ep2", "per_node": 2},
    "dp2 ep2, flat": {"strategy": "tp1_dp2_ep2", "per_node": 2, "dispatch": "flat"},
    "dp4 ep4, flat": {"strategy": "tp1_dp4_ep4", "num_nodes": 2, "per_node": 2, "dispatch": "flat"},
    "dp4 ep4, dedup": {"strategy": "tp1_dp4_ep4", "num_nodes": 2, "per_node": 2, "dispatch": "dedup"},
    "dp4 ep4, hierarchical": {"strategy": "tp1_dp4_ep4", "num_nodes": 2, "per_node": 2},
    "dp4 ep4, copies": {"strategy": "tp1_dp4_ep4", "num_nodes": 2, "per_node": 2, "redundant": 4},
    "dp4 ep4, overlapped": {"strategy": "tp1_dp4_ep4", "num_nodes": 2, "per_node": 2, "overlap": True},
    "tp2 dp2 ep4": {"strategy": "tp2_dp2_ep4", "num_nodes": 2, "per_node": 2},
    "tp2 dp2 ep2 etp2": {"strategy": "ep2_tp2", "num_nodes": 2, "per_node": 2},
    "tp2 dp2 etp4": {"strategy": "tp2_dp2_ep1", "num_nodes": 2, "per_node": 2},
    "ep2, copies, attention divided": {"strategy": "tp2_dp1_ep2", "per_node": 2, "redundant": 2},
    "pp2": {"strategy": "tp1_pp2", "per_node": 2},
    "dp2 ep2 pp2, overlapped": {
        "strategy": "tp1_dp2_ep2_pp2",
        "num_nodes": 2,
        "per_node": 2,
        "overlap": True,
    },
    "two instances of tp2": {"strategy": "tp2_x2", "num_nodes": 2, "per_node": 2},
}


def run(cases: list[dict[str, Any]], tmp_path: Path, ranks: int = 4) -> list[list[dict[str, Any]]]:
    """Return what each rank reports of each case, [cases][ranks]."""
    listing = tmp_path / "cases.json"
    listing.write_text(json.dumps(cases))
    widest = next(case["plan"] for case in cases if case["plan"]["num_gpus"] == ranks)
    job = Job(plan=widest, checkpoint=str(listing), entry="tests.runtime.model.entry:run_cases")
    reports: Any = [report["rank"] for report in launch(job)]
    return [[rank["cases"][number] for rank in reports] for number in range(len(cases))]


def case(folder: Path, new: int = NEW, prompts: list[list[int]] | None = None, **division: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a case: a plan for a checkpoint, and the prompts to continue."""
    extra = {key: division.pop(key) for key in ("sampling", "max_tokens_per_step") if key in division}
    plan = plan_of(folder, **division).model_dump(mode="json")
    return {"plan": plan, "folder": str(folder), "prompts": prompts or PROMPTS, "new": new, **extra}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_division_of_every_architecture_gives_the_tokens_and_logits_of_transformers(
    name: str, tmp_path: Path
) -> None:
    folder = save_checkpoint(name, tmp_path / name)
    reference = reference_model(folder)
    expected = [greedy_continuation(reference, prompt, NEW) for prompt in PROMPTS]
    with torch.no_grad():
        logits = reference(torch.tensor([PROMPTS[0]])).logits[0, -1]
    cases = [case(folder, **division) for division in DIVISIONS.values()]
    for division, ranks in zip(DIVISIONS, run(cases, tmp_path), strict=True):
        for rank in (each for each in ranks if each is not None):
            assert rank["outputs"] == expected, division
            if rank["logits"] is not None:
                torch.testing.assert_close(torch.tensor(rank["logits"]), logits, rtol=0, atol=2e-6, msg=division)


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
