"""The plan at work gives transformers' own tokens, for every architecture and every way to divide it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.runtime.checkpoints import CONFIGS, greedy_continuation, reference_model, save_checkpoint
from tests.runtime.model.cases import DIVISIONS, NEW, PROMPTS, case, run

if TYPE_CHECKING:
    from pathlib import Path

NAMES = sorted(CONFIGS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a checkpoint of every architecture."""
    folder = tmp_path_factory.mktemp("models")
    return {name: save_checkpoint(name, folder / name) for name in NAMES}


@pytest.fixture(scope="module")
def outcomes(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, list[dict[str, Any] | None]]]:
    """Return what each rank reports, by architecture and division; the same ranks take all, as starting takes long."""
    keys = [(name, division) for name in NAMES for division in DIVISIONS]
    cases = [case(folders[name], **DIVISIONS[division]) for name, division in keys]
    found: dict[str, dict[str, list[dict[str, Any] | None]]] = {name: {} for name in NAMES}
    for (name, division), ranks in zip(keys, run(cases, tmp_path_factory.mktemp("cases")), strict=True):
        found[name][division] = ranks
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_division_of_every_architecture_gives_the_tokens_and_logits_of_transformers(
    name: str, folders: dict[str, Path], outcomes: dict[str, dict[str, list[dict[str, Any] | None]]]
) -> None:
    reference = reference_model(folders[name])
    expected = [greedy_continuation(reference, prompt, NEW) for prompt in PROMPTS]
    with torch.no_grad():
        logits = reference(torch.tensor([PROMPTS[0]])).logits[0, -1]
    assert outcomes[name].keys() == DIVISIONS.keys()
    for division, ranks in outcomes[name].items():
        for rank in (each for each in ranks if each is not None):
            assert rank["outputs"] == expected, division
            if rank["logits"] is not None:
                torch.testing.assert_close(torch.tensor(rank["logits"]), logits, rtol=0, atol=2e-6, msg=division)
