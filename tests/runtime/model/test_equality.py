"""The plan at work gives transformers' own tokens, for every architecture and every way to divide a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.runtime.checkpoints import CONFIGS, greedy_continuation, reference_model, save_checkpoint
from tests.runtime.model.cases import DIVISIONS, NEW, PROMPTS, case, run

if TYPE_CHECKING:
    from pathlib import Path

NAMES = sorted(CONFIGS)
IN_FULL = frozenset({"qwen3_moe", "deepseek_v3"})
"""Grouped-query and latent attention, without and with dense layers and shared experts."""
SHORT = (
    "tp4, more than key heads",
    "tp2 dp2 ep2 etp2",
    "dp4 ep4, copies",
    "ep2, experts whole, attention divided",
    "dp2 ep2 pp2, overlapped",
)
"""For the others: every part of a layer divided in every way; how rows travel is not theirs."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a checkpoint of every architecture."""
    folder = tmp_path_factory.mktemp("models")
    return {name: save_checkpoint(name, folder / name) for name in NAMES}


@pytest.fixture(scope="module")
def outcomes(folders: dict[str, Path]) -> dict[str, dict[str, list[dict[str, Any] | None]]]:
    """Return what each rank reports, by architecture and division; the same ranks take all, as starting takes long."""
    keys = [(name, division) for name in NAMES for division in (DIVISIONS if name in IN_FULL else SHORT)]
    cases = [case(folders[name], **DIVISIONS[division]) for name, division in keys]
    found: dict[str, dict[str, list[dict[str, Any] | None]]] = {name: {} for name in NAMES}
    for (name, division), ranks in zip(keys, run(cases), strict=True):
        found[name][division] = ranks
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_divided_gives_the_tokens_and_logits_of_transformers(
    name: str, folders: dict[str, Path], outcomes: dict[str, dict[str, list[dict[str, Any] | None]]]
) -> None:
    reference = reference_model(folders[name])
    expected = [greedy_continuation(reference, prompt, NEW) for prompt in PROMPTS]
    with torch.no_grad():
        logits = reference(torch.tensor([PROMPTS[0]])).logits[0, -1]
    assert set(outcomes[name]) == set(DIVISIONS if name in IN_FULL else SHORT)
    for division, ranks in outcomes[name].items():
        for rank in (each for each in ranks if each is not None):
            assert rank["outputs"] == expected, division
            if rank["logits"] is not None:
                torch.testing.assert_close(torch.tensor(rank["logits"]), logits, rtol=0, atol=2e-6, msg=division)
