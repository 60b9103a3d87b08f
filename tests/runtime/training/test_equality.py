"""Losses, all gradients and trained parameters are those of transformers in one process, however the plan divides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.ranks import run_ranks
from tests.runtime.checkpoints import CONFIGS, reference_model, save_checkpoint
from tests.runtime.plans import plan_of
from tests.runtime.training.entry import train_cases

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.runtime.training.data import Row

STEPS = 3
TOLERANCE = 1e-5
"""Of a tensor's largest gradient. The largest found is 6e-6."""
TOLERANCE_OF_BIASES = 2e-5
"""Of those of keys, whose gradients nearly cancel out in the softmax."""
PARAMETER_TOLERANCE = 1e-3
"""Of a tensor's largest entry, after steps of AdamW: where a gradient is nearly zero, what it divides by is too."""
DIVISIONS: dict[str, dict[str, Any]] = {
    "one rank": {"strategy": "tp1"},
    "tp2, attention and experts divided": {"strategy": "tp2", "per_node": 2},
    "ep2, tokens travel": {"strategy": "tp1_dp2_ep2", "per_node": 2},
    "tp2 ep2, tokens are there": {"strategy": "tp2_dp1_ep2", "per_node": 2},
    "tp4, more than key heads": {"strategy": "tp4", "per_node": 4},
    "tp2 dp2 ep4": {"strategy": "tp2_dp2_ep4", "num_nodes": 2, "per_node": 2},
    "tp2 dp2 ep2 etp2": {"strategy": "ep2_tp2", "num_nodes": 2, "per_node": 2},
    "tp2 dp2 etp4": {"strategy": "tp2_dp2_ep1", "num_nodes": 2, "per_node": 2},
    "dp4 ep4, copies of experts": {"strategy": "tp1_dp4_ep4", "num_nodes": 2, "per_node": 2, "redundant": 4},
    "two instances of ep2": {"strategy": "tp1_dp2_ep2_x2", "num_nodes": 2, "per_node": 2},
}


def batches() -> list[list[Row]]:
    """Return four rows of twelve tokens for each step."""
    drawn = torch.randint(0, 131, (STEPS, 4, 12), generator=torch.Generator().manual_seed(3))
    return [[tuple(row) for row in batch] for batch in drawn.tolist()]


def reference(folder: Path) -> tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the losses, first gradients and last state of transformers' own model."""
    model = reference_model(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    losses, gradients = [], {}
    for batch in batches():
        ids = torch.tensor(batch)
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
        if not gradients:
            gradients = {name: each.grad.clone() for name, each in model.named_parameters()}
        optimizer.step()
    return losses, gradients, model.state_dict()


def covered(ranks: list[dict[str, Any]], what: str, expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the largest error of each tensor's pieces relative to its largest entry; together they must cover it."""
    seen = {name: torch.zeros(each.shape, dtype=torch.bool) for name, each in expected.items()}
    worst: dict[str, float] = {}
    for rank in ranks:
        for name, offsets, sizes, tensor in rank[what]:
            box = tuple(slice(low, low + size) for low, size in zip(offsets, sizes, strict=True))
            seen[name][box] = True
            if tensor.size:
                error = (torch.from_numpy(tensor) - expected[name][box]).abs().max() / expected[
                    name
                ].abs().max().clamp_min(1e-20)
                worst[name] = max(worst.get(name, 0.0), error.item())
    assert all(each.all() for each in seen.values()), [name for name, each in seen.items() if not each.all()]
    return worst


SHORT = ("tp4, more than key heads", "tp2 dp2 ep2 etp2", "dp4 ep4, copies of experts")
"""The divisions that architectures are tried with which have no parts of their own."""
IN_FULL = frozenset({"mixtral", "deepseek_v3"})


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_division_gives_the_losses_gradients_and_steps_of_transformers(name: str, tmp_path: Path) -> None:
    folder = save_checkpoint(name, tmp_path / name)
    losses, gradients, state = reference(folder)
    state = {key: each for key, each in state.items() if key != "lm_head.weight" or key in gradients}
    divisions = {key: each for key, each in DIVISIONS.items() if name in IN_FULL or key in SHORT}
    cases = [
        {"plan": plan_of(folder, **division), "folder": folder, "batches": batches()} for division in divisions.values()
    ]
    ranks = run_ranks(train_cases, 4, cases)
    for number, division in enumerate(divisions):
        outcomes = [rank[number] for rank in ranks if rank[number] is not None]
        for each in outcomes:
            assert each["losses"] == pytest.approx(losses, rel=1e-6), division
        for tensor, error in covered(outcomes, "gradients", gradients).items():
            allowed = TOLERANCE_OF_BIASES if tensor.endswith("k_proj.bias") else TOLERANCE
            assert error <= allowed, (division, tensor, error)
        assert max(covered(outcomes, "parameters", state).values()) <= PARAMETER_TOLERANCE, division
