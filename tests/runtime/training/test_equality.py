"""Losses, all gradients and trained parameters are those of transformers in one process, however the plan divides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.ranks import run_ranks
from tests.runtime.checkpoints import CONFIGS, reference_model, save_checkpoint
from tests.runtime.plans import plan_of
from tests.runtime.training.entry import saved_of, train_cases

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.plan import Plan
    from moiety.runtime.training.data import Row

STEPS = 3
TOLERANCE = 1e-5
"""Of a tensor's largest gradient. The largest found is 6e-6."""
TOLERANCE_OF_KEYS = 2e-5
"""Of biases and norms of keys, whose gradients nearly cancel out in the softmax."""
NEARLY_NOTHING = ("k_proj.bias", "k_norm.weight")
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
    "tp2 dp2 ep4, dense parameters sharded": {
        "strategy": "tp2_dp2_ep4",
        "num_nodes": 2,
        "per_node": 2,
        "dense_parameter_sharding": True,
    },
}


def divided(folder: Path, **division: Any) -> Plan:  # noqa: ANN401 - a plan's
    """Return a plan of training for the checkpoint in `folder`."""
    sharding = division.pop("dense_parameter_sharding", False)
    plan = plan_of(folder, **division)
    options = plan.options.model_copy(update={"dense_parameter_sharding": sharding})
    return plan.model_copy(update={"options": options})


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


SHORT = (
    "tp4, more than key heads",
    "tp2 dp2 ep4, dense parameters sharded",
    "tp2 dp2 ep2 etp2",
    "dp4 ep4, copies of experts",
)
"""The divisions that architectures are tried with which have no parts of their own."""
IN_FULL = frozenset({"mixtral", "deepseek_v3"})


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_division_gives_the_losses_gradients_and_steps_of_transformers(name: str, tmp_path: Path) -> None:
    folder = save_checkpoint(name, tmp_path / name)
    losses, gradients, state = reference(folder)
    state = {key: each for key, each in state.items() if key != "lm_head.weight" or key in gradients}
    divisions = {key: each for key, each in DIVISIONS.items() if name in IN_FULL or key in SHORT}
    cases = [
        {"plan": divided(folder, **division), "folder": folder, "batches": batches()} for division in divisions.values()
    ]
    ranks = run_ranks(train_cases, 4, cases)
    for number, division in enumerate(divisions):
        outcomes = [rank[number] for rank in ranks if rank[number] is not None]
        for each in outcomes:
            assert each["losses"] == pytest.approx(losses, rel=1e-6), division
        for tensor, error in covered(outcomes, "gradients", gradients).items():
            allowed = TOLERANCE_OF_KEYS if tensor.endswith(NEARLY_NOTHING) else TOLERANCE
            assert error <= allowed, (division, tensor, error)
        assert max(covered(outcomes, "parameters", state).values()) <= PARAMETER_TOLERANCE, division


def test_layers_that_compute_again_give_the_same_bits_and_keep_less_than_half(tmp_path: Path) -> None:
    folder = save_checkpoint("deepseek_v3", tmp_path / "deepseek_v3")
    plans = [divided(folder, **DIVISIONS[name]) for name in ("tp2 ep2, tokens are there", "ep2, tokens travel")]
    cases = [
        {"plan": plan, "folder": folder, "batches": batches(), "checkpointed": layers}
        for plan in plans
        for layers in ((), (0, 2), (0, 1, 2))
    ]
    for rank in run_ranks(train_cases, 2, cases):
        for first in (0, 3):
            for other in (first + 1, first + 2):
                assert rank[other]["losses"] == rank[first]["losses"]
                for what in ("gradients", "parameters"):
                    pairs = zip(rank[first][what], rank[other][what], strict=True)
                    assert all((one[-1] == two[-1]).all() for one, two in pairs)
    for saved in run_ranks(saved_of, 2, plans[1], folder, batches()[0]):
        assert saved["with_checkpointing"] <= saved["without_checkpointing"] / 2
        assert saved["as_planned"] == saved["without_checkpointing"]


def test_a_bias_that_follows_the_loads_evens_them_out(tmp_path: Path) -> None:
    folder = save_checkpoint("deepseek_v3", tmp_path / "deepseek_v3")
    case = {"plan": divided(folder, strategy="tp1_dp2_ep2", per_node=2), "folder": folder}
    case |= {"batches": 25 * [batches()[0]], "learning_rate": 1e-5, "balance_rate": 0.02}
    first, second = run_ranks(train_cases, 2, [case])
    assert first[0]["imbalances"] == second[0]["imbalances"]
    assert first[0]["imbalances"][-1] < first[0]["imbalances"][0] - 0.5
    biases = [[box for box in rank[0]["parameters"] if "correction_bias" in box[0]] for rank in (first, second)]
    assert len(biases[0]) == 2
    assert all((one[-1] == two[-1]).all() for one, two in zip(*biases, strict=True))
