"""Four ranks over NCCL give the tokens of one; every way to exchange gives the same bits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from moiety.cluster.catalog import load_device
from moiety.runtime.job import Job
from tests.gpu.ranks import reports_of
from tests.runtime.checkpoints import greedy_continuation, reference_model, save_checkpoint
from tests.runtime.model.cases import DIVISIONS, NEW, PROMPTS, case

if TYPE_CHECKING:
    from pathlib import Path

DIVIDED = (
    "dp4 ep4, hierarchical",
    "dp4 ep4, flat",
    "dp4 ep4, dedup",
    "dp4 ep4, overlapped",
    "dp4 ep4, copies",
    "tp2 dp2 ep4",
    "tp2 dp2 ep2 etp2",
    "dp2 ep2 pp2, overlapped",
)
EXCHANGES = ("dp4 ep4, hierarchical", "dp4 ep4, flat", "dp4 ep4, dedup", "dp4 ep4, overlapped")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Qwen3-MoE."""
    return save_checkpoint("qwen3_moe", tmp_path_factory.mktemp("nccl") / "qwen3_moe")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what the ranks report of each division."""
    device = load_device("h100")
    cases = [case(folder, device=device, **DIVISIONS[name]) for name in DIVIDED]
    (folder.parent / "cases.json").write_text(json.dumps(cases))
    job = Job(
        plan=cases[0]["plan"],
        checkpoint=str(folder.parent / "cases.json"),
        entry="tests.runtime.model.entry:run_cases",
    )
    reports = [report["rank"]["cases"] for report in reports_of(job, folder.parent)]
    return {name: [rank[number] for rank in reports] for number, name in enumerate(DIVIDED)}


@pytest.mark.parametrize("name", DIVIDED)
def test_a_division_gives_the_tokens_and_logits_of_transformers(
    name: str, folder: Path, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    reference = reference_model(folder).cuda()
    with torch.no_grad():
        logits = reference(torch.tensor([PROMPTS[0]], device="cuda")).logits[0, -1].cpu()
    expected = [greedy_continuation(reference, prompt, NEW) for prompt in PROMPTS]
    for rank in outcomes[name]:
        assert rank["outputs"] == expected
        if rank["logits"] is not None:
            torch.testing.assert_close(torch.tensor(rank["logits"]), logits, rtol=0, atol=1e-5)


def test_every_way_to_exchange_gives_the_same_bits(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    found = [outcomes[name][0]["logits"] for name in EXCHANGES]
    assert all(each == found[0] for each in found)
