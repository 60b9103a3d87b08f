"""`moiety train`: steps of real ranks, their losses and memory, and a state that is gone on from."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file, save_file

from tests.cli.command import moiety, refused
from tests.runtime.checkpoints import reference_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def rows(work: Path) -> list[list[int]]:
    """Write three rows of training data, and return them."""
    drawn = torch.randint(0, 131, (3, 12), generator=torch.Generator().manual_seed(1)).tolist()
    (work / "d.jsonl").write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in drawn))
    return drawn


def trained(*arguments: str | Path) -> dict[str, Any]:
    """Return the document of a training."""
    done = moiety("train", *arguments, "--data", "d.jsonl", "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


def reference_losses(folder: Path, rows: list[list[int]], steps: int) -> list[float]:
    model = reference_model(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    losses = []
    for step in range(steps):
        ids = torch.tensor([rows[(2 * step + each) % len(rows)] for each in (0, 1)])
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_losses_are_those_of_transformers_and_a_state_is_gone_on_from(
    runnable_checkpoint: Path, runnable_folder: Path, work: Path, rows: list[list[int]]
) -> None:
    command = (runnable_folder, "--checkpoint", runnable_checkpoint, "--lr", "2e-3", "--batch-size", "2")
    whole = trained(*command, "--steps", "3", "--save", "state")
    assert whole["losses"] == pytest.approx(reference_losses(runnable_checkpoint, rows, 4)[:3], rel=1e-5)
    saved = whole["saved_tensor_bytes"]
    assert saved["with_checkpointing"] <= saved["without_checkpointing"] / 2
    planned = whole["planned"]["bytes_by_kind"]
    for rank in whole["measured"]["ranks"]:
        for kind in ("dense_weights", "expert_weights", "embedding_and_head", "gradients"):
            assert rank["held_bytes"][kind] == pytest.approx(planned[kind], rel=0.05)
        held = sum(rank["held_bytes"].values())
        assert whole["peak_bytes"] > held
    assert whole["allocations_per_step"] > 100
    assert whole["sharding"] is None
    assert (whole["first_step"], whole["batch_size"], whole["num_ranks"]) == (0, 2, 2)
    further = trained(*command, "--steps", "1", "--resume", "state", "--fold", "1")
    assert further["first_step"] == 3
    assert further["losses"] == pytest.approx(reference_losses(runnable_checkpoint, rows, 4)[3:], rel=1e-5)
    assert sorted(path.name for path in work.iterdir()) == ["d.jsonl", "state"]


def test_the_peak_at_loads_is_planned_for_the_step_whose_peak_is_measured(
    runnable_checkpoint: Path, runnable_folder: Path, work: Path
) -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(0, 131, (8, 12), generator=generator)
    drawn[4:] = 7  # in the steps from the third on all tokens are the same, and choose the same experts
    (work / "d.jsonl").write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in drawn.tolist()))
    command = (runnable_folder, "--checkpoint", runnable_checkpoint, "--batch-size", "2", "--steps")
    two, four = (trained(*command, number) for number in ("2", "4"))
    assert four["planned_peak_bytes_at_loads"] == two["planned_peak_bytes_at_loads"]
    counts = [[rank["expert_counts"] for rank in each["measured"]["ranks"]] for each in (two, four)]
    assert counts[0] == counts[1]


def test_a_training_that_diverges_is_told_so_and_leaves_the_states_that_are_there(
    runnable_checkpoint: Path, runnable_folder: Path, work: Path, rows: list[list[int]]
) -> None:
    """Steps or weights too large make a loss that is no number; moments can overflow behind a good one."""
    del rows
    weights = load_file(runnable_checkpoint / "model.safetensors")
    for name, factor in (("broken", 1e30), ("steep", 1e-30)):
        changed = {**weights, "model.norm.weight": weights["model.norm.weight"] * factor}
        changed["lm_head.weight"] = weights["lm_head.weight"] * 1e30
        save_file(changed, shutil.copytree(runnable_checkpoint, work / name) / "model.safetensors", {"format": "pt"})
    command = ("train", runnable_folder, "--data", "d.jsonl", "--save", "state", "--json")
    assert moiety(*command, "--checkpoint", runnable_checkpoint, "--steps", "1").code == 0
    good = {path.name: path.read_bytes() for path in (work / "state").iterdir()}
    for checkpoint, steps, rate, words in (
        (runnable_checkpoint, "3", "1e30", ("loss of step 2 = nan", "lower --lr", "nothing was saved")),
        ("steep", "1", "1e-3", ("optimizer.", "holds values that are not finite after step 1", "nothing was saved")),
        ("broken", "1", "1e-3", ("loss of step 1 = nan", "weights are too large")),
    ):
        message = refused(moiety(*command, "--checkpoint", checkpoint, "--steps", steps, "--lr", rate))
        assert all(each in message for each in words), message
    assert {path.name: path.read_bytes() for path in (work / "state").iterdir()} == good
    assert sorted(path.name for path in work.iterdir()) == ["broken", "d.jsonl", "state", "steep"]


def test_tables_show_losses_and_memory(runnable_checkpoint: Path, runnable_folder: Path, rows: list[list[int]]) -> None:
    del rows
    done = moiety("train", runnable_folder, "--checkpoint", runnable_checkpoint, "--data", "d.jsonl", "--steps", "1")
    assert done.code == 0, done.err
    for words in ("2 rows a step", "Memory of the fullest rank", "optimizer state", "all layers checkpointed"):
        assert words in done.out
