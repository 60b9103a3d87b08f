"""Flat, dedup and hierarchical exchange: the same bits, the right sums, and the rows of the formula on the wire."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import torch

from moiety.cost.expert_traffic import rows_per_token
from moiety.model.feed_forward import MoeFeedForward
from moiety.runtime.dispatch.quantize import dequantized, quantized
from moiety.runtime.dispatch.wire import WireFormat
from moiety.strategy.strategy import Strategy
from tests.ranks import run_ranks
from tests.runtime.checkpoints import save_checkpoint
from tests.runtime.dispatch.entry import METHODS, NOTED, gated, run_cases, tokens_of
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.plan import AllToAll

SHAPE = {"num_gpus": 4, "gpus_per_node": 2, "expert_tp": 1, "slots_per_rank": 4, "top_k": 3}
UNIFORM = {"seed": 1, "tokens": [600, 600, 600, 600], "skew": 1.0, "hidden": 128, "width": 32}
CASES: dict[str, dict[str, Any]] = {
    "uniform": {"shape": SHAPE, **UNIFORM},
    "uneven, a rank without tokens": {"shape": SHAPE, **UNIFORM, "tokens": [40, 0, 1, 7], "seed": 3},
    "one token": {"shape": SHAPE, **UNIFORM, "tokens": [0, 0, 1, 0], "seed": 5},
    "nobody has tokens": {"shape": SHAPE, **UNIFORM, "tokens": [0, 0, 0, 0]},
    "skewed": {"shape": SHAPE, **UNIFORM, "skew": 9.0, "seed": 11, "tokens": [64, 31, 17, 90]},
    "experts over two ranks": {"shape": {**SHAPE, "expert_tp": 2, "slots_per_rank": 8}, **UNIFORM, "seed": 13},
    "experts over two nodes": {"shape": {**SHAPE, "expert_tp": 4, "slots_per_rank": 8}, **UNIFORM, "seed": 17},
    "nodes of one": {"shape": {**SHAPE, "gpus_per_node": 1}, **UNIFORM, "seed": 19},
    "rows in FP8": {"shape": SHAPE, **UNIFORM, "hidden": 192, "seed": 29, "dispatch": "fp8"},
    "one expert a token": {"shape": {**SHAPE, "top_k": 1}, **UNIFORM, "seed": 23},
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("exchange")
    tiers = plan_of(save_checkpoint("mixtral", folder / "mixtral"), "tp1_dp4_ep4", 2, 2).cluster.tiers
    ranks = run_ranks(run_cases, 4, tiers, list(CASES.values()), timeout_s=180.0)
    return {name: [rank[number] for rank in ranks] for number, name in enumerate(CASES)}


@functools.cache
def expert(slot: int, hidden: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of a slot's expert."""
    generator = torch.Generator().manual_seed(1000 + slot)
    up = torch.randn(hidden, 2, width, generator=generator).reshape(hidden, -1)
    return up, torch.randn(width, hidden, generator=generator)


@pytest.mark.parametrize("name", CASES)
def test_every_way_of_sending_gives_the_same_bits(name: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    for rank in outcomes[name]:
        assert len({rank[method]["sums"] for method in METHODS}) == 1
        for method in METHODS:
            assert rank[method]["sent"] == rank[method.removesuffix(NOTED)]["sent"]


@pytest.mark.parametrize("name", CASES)
def test_the_sums_are_those_of_the_experts(name: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    case = CASES[name]
    for index, rank in enumerate(outcomes[name]):
        hidden, slots, weights = tokens_of(case, index)
        if case.get("dispatch") == "fp8":
            hidden = dequantized(*quantized(hidden), torch.float32)
        expected = torch.zeros_like(hidden)
        for token in range(hidden.shape[0]):
            for slot, weight in zip(slots[token].tolist(), weights[token], strict=True):
                up, down = expert(slot, case["hidden"], case["width"])
                expected[token] += weight * (gated(hidden[token][None] @ up) @ down)[0]
        found = torch.frombuffer(bytearray.fromhex(rank["flat"]["sums"]) or bytearray(4), dtype=torch.float32)
        torch.testing.assert_close(found[: expected.numel()].view(expected.shape), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["uniform", "experts over two ranks"])
@pytest.mark.parametrize("method", ["flat", "dedup", "hierarchical"])
def test_bytes_between_nodes_are_those_of_the_formula(
    name: str, method: AllToAll, outcomes: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    case = CASES[name]
    shape = case["shape"]
    ranks = shape["num_gpus"] // shape["expert_tp"]
    moe = MoeFeedForward(
        num_experts=ranks * shape["slots_per_rank"], top_k=shape["top_k"], expert_intermediate_size=case["width"]
    )
    strategy = Strategy(attn_dp=4, ep=ranks, etp=shape["expert_tp"])
    cluster = plan_of(save_checkpoint("mixtral", tmp_path / "mixtral"), "tp1_dp4_ep4", 2, 2).cluster
    rows = rows_per_token(moe, strategy, cluster, method)[1] * sum(case["tokens"])
    dispatched = WireFormat(
        case["hidden"], 1 if method == "flat" else shape["top_k"], torch.float32, torch.float32
    ).row_bytes
    combined = 4 * case["hidden"]
    counted = sum(rank[method]["sent"]["network"] for rank in outcomes[name])
    assert counted == pytest.approx(rows * (dispatched + combined), rel=0.03)
