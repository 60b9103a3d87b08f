"""Everything about a training that is refused before any rank is started."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")

from tests.cli.command import moiety, refused

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("no_ranks")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "nowhere.jsonl"), ("nowhere.jsonl", "no such file")),
        (("--data", "bad.jsonl"), ("bad.jsonl:2", "token_ids[1] = 131", "0 to 130")),
        (("--data", "unequal.jsonl"), ("unequal.jsonl:2", "equal length")),
        (("--data", "d.jsonl", "--batch-size", "3"), ("--batch-size = 3", "multiple of 2", "--batch-size 2")),
        (("--data", "d.jsonl", "--steps", "0"), ("--steps",)),
        (("--data", "d.jsonl", "--lr", "0"), ("--lr", "above 0")),
        (("--data", "d.jsonl", "--lr", "nan"), ("--lr", "above 0")),
        (("--data", "d.jsonl", "--lr", "1e39"), ("--lr", "at most 1e+37")),
        (("--data", "d.jsonl", "--resume", "nowhere"), ("--resume = nowhere", ".metadata")),
        (("--data", "d.jsonl", "--save", "full"), ("--save = full", "is no distributed checkpoint")),
        (("--data", "d.jsonl", "--save", "d.jsonl"), ("--save", "is no distributed checkpoint")),
        (("--data", "d.jsonl", "--save", "d.jsonl/state"), ("--save", "d.jsonl: cannot be written: there is a file")),
        (("--data", "d.jsonl", "--balance-router", "0.1"), ("--balance-router", "e_score_correction_bias")),
        (("--data", "d.jsonl", "--transport", "socket"), ("--transport", "did you mean 'sockets'")),
        (("--data", "d.jsonl", "--fold", "3"), ("--fold = 3", "2 ranks")),
    ],
)
def test_what_is_refused_before_any_rank_is_started(
    arguments: tuple[str, ...], words: tuple[str, ...], runnable_checkpoint: Path, runnable_folder: Path, work: Path
) -> None:
    (work / "d.jsonl").write_text('{"token_ids": [1, 2, 3]}\n')
    (work / "bad.jsonl").write_text('{"token_ids": [1, 2, 3]}\n{"token_ids": [1, 131, 3]}\n')
    (work / "unequal.jsonl").write_text('{"token_ids": [1, 2, 3]}\n{"token_ids": [1, 2]}\n')
    (work / "full").mkdir()
    (work / "full" / "notes.txt").write_text("mine")
    steps = () if "--steps" in arguments else ("--steps", "1")
    message = refused(moiety("train", runnable_folder, "--checkpoint", runnable_checkpoint, *steps, *arguments))
    assert all(word in message for word in words), message


def test_what_is_not_trained_is_refused(runnable_checkpoint: Path, runnable_folder: Path, work: Path) -> None:
    (work / "d.jsonl").write_text('{"token_ids": [1, 2, 3]}\n')
    stored = json.loads((runnable_folder / "enhanced_deployment_method.json").read_text())
    stored["options"]["dtypes"]["activations"] = "fp16"
    (work / "half.json").write_text(json.dumps(stored))
    command = ("--checkpoint", runnable_checkpoint, "--data", "d.jsonl", "--steps", "1")
    assert "training computes in fp32 or bf16" in refused(moiety("train", "half.json", *command))
    stored["options"]["dtypes"] |= {"activations": "fp32", "critical": "fp16"}
    stored["options"]["dense_parameter_sharding"] = True
    (work / "narrow.json").write_text(json.dumps(stored))
    assert "gradients of sharded parameters are summed in" in refused(moiety("train", "narrow.json", *command))
    load = ("--concurrency", "8", "--input-tokens", "16", "--output-tokens", "16", "--quiet")
    where = ("--cluster", "local:2", "--strategy", "tp1_pp2")
    assert moiety("plan", runnable_checkpoint, *where, *load, "--out", "staged").code == 0
    assert "one pipeline stage" in refused(moiety("train", "staged", *command))
