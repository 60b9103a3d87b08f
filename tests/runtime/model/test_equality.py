"""The plan at work gives transformers' own tokens, for every architecture and every way to divide it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tests.runtime.checkpoints import CONFIGS, greedy_continuation, reference_model, save_checkpoint
from tests.runtime.model.cases import DIVISIONS, NEW, PROMPTS, case, run

if TYPE_CHECKING:
    from pathlib import Path


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
