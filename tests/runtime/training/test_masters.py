"""Training in BF16: as close to float32 as transformers' own BF16, and small steps are not lost, thanks to masters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.ranks import run_ranks
from tests.runtime.checkpoints import reference_model, save_checkpoint
from tests.runtime.training.entry import train_cases
from tests.runtime.training.test_equality import DIVISIONS, batches, divided

if TYPE_CHECKING:
    from pathlib import Path

NAMES = (
    "one rank",
    "tp2 dp2 ep4",
    "tp2 dp2 ep4, dense parameters sharded",
    "two instances of ep2, fully sharded",
)
SMALL_RATE = 1e-6
"""Of which a step is below half a unit in the last place of nearly every BF16 weight."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint in BF16."""
    return save_checkpoint("qwen3_moe", tmp_path_factory.mktemp("half") / "qwen3_moe", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the outcome of each division, and of small steps on one rank, by rank."""
    cases: list[dict[str, Any]] = [
        {
            "plan": divided(folder, dtype="bf16", **DIVISIONS[name]),
            "folder": folder,
            "batches": batches(),
            "again": True,
        }
        for name in NAMES
    ]
    cases.append({**cases[0], "learning_rate": SMALL_RATE})
    ranks = run_ranks(train_cases, 4, cases, timeout_s=120)
    return {name: [rank[number] for rank in ranks if rank[number]] for number, name in enumerate((*NAMES, "small"))}


def first_step(folder: Path, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and the gradients of transformers' own model in that format."""
    model = reference_model(folder, dtype)
    ids = torch.tensor(batches()[0])
    loss = model(ids, labels=ids).loss
    loss.backward()
    return loss.item(), {name: each.grad.float() for name, each in model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_gradients_stay_within_the_rounding_of_transformers(
    name: str, folder: Path, outcomes: dict[str, list[dict[str, Any]]]
) -> None:
    loss, exact = first_step(folder, torch.float32)
    half_loss, half = first_step(folder, torch.bfloat16)
    for rank in outcomes[name]:
        assert rank["losses"][0] == pytest.approx(loss, abs=2 * abs(half_loss - loss) + 2e-3)
        for tensor, offsets, sizes, found in rank["gradients"]:
            box = tuple(slice(low, low + size) for low, size in zip(offsets, sizes, strict=True))
            if found.size:
                allowed = 3 * (half[tensor] - exact[tensor]).norm() / exact[tensor].norm() + 0.02
                error = (torch.from_numpy(found) - exact[tensor][box]).norm() / exact[tensor].norm()
                assert error <= allowed, (tensor, float(error), float(allowed))


@pytest.mark.parametrize("name", [*NAMES, "small"])
def test_a_parameter_is_its_master_rounded(name: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    for rank in outcomes[name]:
        held = {box[:2]: box[-1] for box in rank["parameters"]}
        assert rank["masters"].keys() == {box[:2] for box in rank["gradients"]}
        for key, master in rank["masters"].items():
            assert (torch.from_numpy(master).bfloat16().float().numpy() == held[key]).all()


def test_steps_too_small_for_bf16_are_not_lost(folder: Path, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    (rank,) = outcomes["small"]
    before = reference_model(folder, torch.float32).state_dict()
    moved = rank["masters"]["model.norm.weight", (0,)] - before["model.norm.weight"].numpy()
    assert abs(moved).max() == pytest.approx(3 * SMALL_RATE, rel=0.5)
    (weight,) = (box[-1] for box in rank["parameters"] if box[0] == "model.norm.weight")
    assert (weight == before["model.norm.weight"].numpy()).all(), "in BF16 alone nothing would have changed"
