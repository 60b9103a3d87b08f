"""DeepEP, where it is installed: the sums of our own exchange within BF16's rounding, and a model's tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from moiety.cluster.catalog import load_device
from moiety.runtime.job import Job
from tests.gpu.ranks import reports_of
from tests.runtime.checkpoints import reference_model, save_checkpoint
from tests.runtime.model.cases import PROMPTS, case

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("deep_ep", reason="needs DeepEP", exc_type=ImportError)

PAIR: dict[str, Any] = {"strategy": "tp1_dp2_ep2", "per_node": 2, "dtype": "bf16", "dispatch": "dedup"}


def test_its_sums_are_those_of_our_exchange(tmp_path: Path) -> None:
    folder = save_checkpoint("qwen3_moe", tmp_path / "qwen3_moe", dtype=torch.bfloat16)
    plan = case(folder, device=load_device("h100"), **PAIR)["plan"]
    job = Job(plan=plan, checkpoint=str(folder), entry="tests.gpu.deep_ep_rank:exchange_both_ways")
    for report in reports_of(job, tmp_path):
        for each in report["rank"]["cases"]:
            assert each["off"] <= 2 * torch.finfo(torch.bfloat16).eps * each["norm"]


def test_a_model_stays_within_its_rounding(tmp_path: Path) -> None:
    folder = save_checkpoint("qwen3_moe", tmp_path / "qwen3_moe", dtype=torch.bfloat16, hidden_size=256)
    divided = {**case(folder, device=load_device("h100"), **PAIR), "transport": "deep_ep"}
    (tmp_path / "cases.json").write_text(json.dumps([divided]))
    job = Job(
        plan=divided["plan"], checkpoint=str(tmp_path / "cases.json"), entry="tests.runtime.model.entry:run_cases"
    )
    with torch.no_grad():
        exact, rounded = (
            reference_model(folder, dtype)(torch.tensor([PROMPTS[0]])).logits[0, -1].float()
            for dtype in (torch.float32, torch.bfloat16)
        )
    allowed = 2 * (rounded - exact).abs().max()
    for report in reports_of(job, tmp_path):
        logits = torch.tensor(report["rank"]["cases"][0]["logits"])
        assert (logits - exact).abs().max() <= allowed
