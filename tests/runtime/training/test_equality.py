"""Losses, all gradients and trained parameters are those of transformers in one process, however the plan divides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from moiety.cli.train_plan import trained
from moiety.graph.graph import build_graph
from moiety.sim.sharding import sharding_bytes
from tests.ranks import run_ranks
from tests.runtime.checkpoints import CONFIGS, reference_model, save_checkpoint
from tests.runtime.plans import plan_of
from tests.runtime.training.entry import train_cases
from tests.scenarios import CALIBRATION

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.plan import Plan
    from moiety.runtime.training.data import Row

STEPS = 3
TOLERANCE = 1e-5
"""Of a tensor's largest gradient, from what transformers computes in float64: in float32 its own are up to 5e-6 off
that, more or less by the number of threads that add them up."""
TOLERANCE_OF_HEADS = 2e-5
"""Of biases of keys and norms of heads, whose gradients nearly cancel out in the softmax."""
NEARLY_NOTHING = ("k_proj.bias", "k_norm.weight", "q_norm.weight")
PARAMETER_TOLERANCE = 1e-3
"""Of a tensor's largest entry, after steps of AdamW: where a gradient is nearly zero, what it divides by is too."""
FULLY = "two instances of ep2, fully sharded"
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
    FULLY: {
        "strategy": "tp1_dp2_ep2_x2",
        "num_nodes": 2,
        "per_node": 2,
        "fully_sharded": True,
    },
    "four instances, fully sharded": {"strategy": "tp1_x4", "num_nodes": 2, "per_node": 2, "fully_sharded": True},
}


def divided(folder: Path, **division: Any) -> Plan:  # noqa: ANN401 - a plan's
    """Return a plan of training for the checkpoint in `folder`."""
    sharding = {name: division.pop(name, False) for name in ("dense_parameter_sharding", "fully_sharded")}
    plan = plan_of(folder, **division)
    options = plan.options.model_copy(update=sharding)
    return plan.model_copy(update={"options": options})


def batches() -> list[list[Row]]:
    """Return four rows of twelve tokens for each step."""
    drawn = torch.randint(0, 131, (STEPS, 4, 12), generator=torch.Generator().manual_seed(3))
    return [[tuple(row) for row in batch] for batch in drawn.tolist()]


def reference(folder: Path) -> tuple[list[float], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the losses, first gradients and last state of transformers' own model."""
    model = reference_model(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    exact = reference_model(folder, torch.float64)
    exact.set_experts_implementation("eager")  # grouped products take no float64
    ids = torch.tensor(batches()[0])
    exact(ids, labels=ids).loss.backward()
    gradients = {name: each.grad.float() for name, each in exact.named_parameters()}
    losses: list[float] = []
    for batch in batches():
        ids = torch.tensor(batch)
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
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
    FULLY,
)
"""The divisions that architectures are tried with which have no parts of their own."""
IN_FULL = frozenset({"mixtral", "qwen3_moe", "deepseek_v3"})


AGAIN = ("tp2 ep2, tokens are there", "ep2, tokens travel", FULLY)
CHECKPOINTED = ((), (0, 2), (0, 1, 2))
"""Layers that compute their activations again, in cases that are otherwise the same."""

Outcomes = dict[tuple[str, str], list[dict[str, Any]]]
"""What each rank that takes part in a case returns, by architecture and case."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a checkpoint of every architecture."""
    folder = tmp_path_factory.mktemp("models")
    return {name: save_checkpoint(name, folder / name) for name in sorted(CONFIGS)}


@pytest.fixture(scope="module")
def outcomes(folders: dict[str, Path]) -> Outcomes:
    """Return the outcomes of all cases: the same ranks take them one after the other, as they take long to start."""
    cases: dict[tuple[str, str], dict[str, Any]] = {}
    for name, folder in folders.items():
        for key in DIVISIONS if name in IN_FULL else SHORT:
            cases[name, key] = {"plan": divided(folder, **DIVISIONS[key]), "folder": folder, "batches": batches()}
    folder = folders["deepseek_v3"]
    for key in AGAIN:
        for layers in CHECKPOINTED:
            case = {"plan": divided(folder, **DIVISIONS[key]), "folder": folder, "batches": batches()}
            cases[key, str(layers)] = {**case, "checkpointed": layers, "measures": True}
    balanced = {"plan": divided(folder, strategy="tp1_dp2_ep2", per_node=2), "folder": folder}
    balanced |= {"batches": 15 * [batches()[0]], "learning_rate": 1e-5, "balance_rate": 0.02}
    cases["balanced", ""] = balanced
    ranks = run_ranks(train_cases, 4, list(cases.values()), timeout_s=300)
    return {key: [rank[number] for rank in ranks if rank[number] is not None] for number, key in enumerate(cases)}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_division_gives_the_losses_gradients_and_steps_of_transformers(
    name: str, folders: dict[str, Path], outcomes: Outcomes
) -> None:
    losses, gradients, state = reference(folders[name])
    state = {key: each for key, each in state.items() if key != "lm_head.weight" or key in gradients}
    found = {division: ranks for (model, division), ranks in outcomes.items() if model == name}
    assert len(found) >= len(SHORT)
    for division, ranks in found.items():
        for each in ranks:
            assert each["losses"] == pytest.approx(losses, rel=1e-6), division
        for tensor, error in covered(ranks, "gradients", gradients).items():
            allowed = TOLERANCE_OF_HEADS if tensor.endswith(NEARLY_NOTHING) else TOLERANCE
            assert error <= allowed, (division, tensor, error)
        assert max(covered(ranks, "parameters", state).values()) <= PARAMETER_TOLERANCE, division


@pytest.mark.parametrize("division", AGAIN)
def test_layers_that_compute_again_give_the_same_bits_and_keep_less_than_half(
    division: str, outcomes: Outcomes
) -> None:
    for kept, some, none in zip(*(outcomes[division, str(layers)] for layers in CHECKPOINTED), strict=True):
        for other in (some, none):
            assert other["losses"] == kept["losses"]
            for what in ("gradients", "parameters"):
                pairs = zip(kept[what], other[what], strict=True)
                assert all((one[-1] == two[-1]).all() for one, two in pairs)
        saved = some["saved"]
        assert saved["with_checkpointing"] <= saved["without_checkpointing"] / 2
        assert saved["with_checkpointing"] < saved["as_planned"] < saved["without_checkpointing"]


def test_sharded_dense_parameters_take_what_the_memory_plan_says(outcomes: Outcomes) -> None:
    whole, sharded = (outcomes["qwen3_moe", key] for key in ("tp2 dp2 ep4", "tp2 dp2 ep4, dense parameters sharded"))
    for one, two in zip(whole, sharded, strict=True):
        dense = one["weight_bytes"]["dense_weights"]
        planned = dense / 2 + 2 * dense / 3  # a share, and two of three layers at work
        assert two["weight_bytes"]["dense_weights"] == pytest.approx(planned, rel=0.1)
        assert two["weight_bytes"]["expert_weights"] == one["weight_bytes"]["expert_weights"]


def test_sharded_dense_parameters_send_what_the_plan_says_and_are_waited_for_no_longer_than_they_take(
    folders: dict[str, Path], outcomes: Outcomes
) -> None:
    key = "tp2 dp2 ep4, dense parameters sharded"
    for name in ("qwen3_moe", "deepseek_v3", "gpt_oss"):
        plan = trained(divided(folders[name], **DIVISIONS[key]), CALIBRATION, num_rows=4, row_tokens=12).plan
        gathered, scattered = sharding_bytes(build_graph(plan.model, plan.pools[0], plan.options))
        for rank in outcomes[name, key]:
            kinds = [each.kind for each in rank["transfers"]]
            assert kinds.count("gather") == 1 + 2 * plan.model.num_layers  # embedding and head once
            assert kinds.count("scatter") == 1 + plan.model.num_layers
            # the layer before is asked for before the gradients of the last are there
            assert kinds.index("scatter") == 1 + plan.model.num_layers + 2
            total = rank["transferred"]
            assert total["gathered_bytes"] == pytest.approx(gathered, rel=0.05)
            assert total["scattered_bytes"] == pytest.approx(scattered, rel=0.05)
            assert 0 <= total["exposed_s"] <= total["transfer_s"]
            assert all(each.seconds > 0 and each.waited_from_s is not None for each in rank["transfers"])
    assert all(rank["transferred"] is None for rank in outcomes["qwen3_moe", "tp2 dp2 ep4"])


@pytest.mark.parametrize("division", [FULLY, "four instances, fully sharded"])
def test_fully_sharded_plans_hold_and_send_what_the_plan_says(
    division: str, folders: dict[str, Path], outcomes: Outcomes
) -> None:
    plan = trained(divided(folders["qwen3_moe"], **DIVISIONS[division]), CALIBRATION, num_rows=4, row_tokens=12).plan
    memory, layers = plan.pools[0].memory, plan.model.num_layers
    assert memory is not None
    gathered, scattered = sharding_bytes(build_graph(plan.model, plan.pools[0], plan.options))
    for rank in outcomes["qwen3_moe", division]:
        for kind in ("dense_weights", "expert_weights"):
            assert rank["weight_bytes"][kind] == pytest.approx(memory.bytes_by_kind[kind], rel=0.1), kind
        # experts of one stage's only group are sharded over the same ranks as all else, and go along with it
        meshes = 2 if division == FULLY else 1
        kinds = [each.kind for each in rank["transfers"]]
        assert kinds.count("gather") == 1 + 2 * meshes * layers
        assert kinds.count("scatter") == 1 + meshes * layers
        total = rank["transferred"]
        assert total["gathered_bytes"] == pytest.approx(gathered, rel=0.05)
        assert total["scattered_bytes"] == pytest.approx(scattered, rel=0.05)
        assert 0 <= total["exposed_s"] <= total["transfer_s"]


def test_a_bias_that_follows_the_loads_evens_them_out(outcomes: Outcomes) -> None:
    first, second = outcomes["balanced", ""]
    assert first["imbalances"] == second["imbalances"]
    assert first["imbalances"][-1] < first["imbalances"][0] - 0.5
    biases = [[box for box in rank["parameters"] if "correction_bias" in box[0]] for rank in (first, second)]
    assert len(biases[0]) == 2
    assert all((one[-1] == two[-1]).all() for one, two in zip(*biases, strict=True))
