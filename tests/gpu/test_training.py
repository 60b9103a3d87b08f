"""Training over NCCL, dense parameters sharded, everything, and nothing, has the losses of transformers on one GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from torch.distributed.fsdp._fully_shard import _fsdp_common

from moiety.cluster.catalog import load_device
from moiety.runtime.job import Job
from tests.gpu.ranks import reports_of
from tests.runtime.checkpoints import reference_model, save_checkpoint
from tests.runtime.training.test_equality import DIVISIONS, FULLY, batches, divided

if TYPE_CHECKING:
    from pathlib import Path

DIVIDED = (
    "tp2 dp2 ep4",
    "tp2 dp2 ep4, dense parameters sharded",
    "dp4 ep4, copies of experts",
    "four instances, fully sharded",
    *((FULLY,) if hasattr(_fsdp_common, "ShardPlacementResult") else ()),  # which PyTorch 2.11 cannot
)


def test_losses_are_those_of_transformers(tmp_path: Path) -> None:
    folder = save_checkpoint("qwen3_moe", tmp_path / "qwen3_moe")
    device = load_device("h100")
    plans = [divided(folder, device=device, **DIVISIONS[name]).model_dump(mode="json") for name in DIVIDED]
    cases = [{"plan": plan, "folder": str(folder), "batches": batches()} for plan in plans]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    job = Job(plan=plans[0], checkpoint=str(tmp_path / "cases.json"), entry="tests.gpu.training_rank:losses")
    model = reference_model(folder).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    expected = []
    for batch in batches():
        ids = torch.tensor(batch, device="cuda")
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    for report in reports_of(job, tmp_path):
        assert report["rank"]["cases"] == [pytest.approx(expected, rel=1e-5)] * len(DIVIDED)
