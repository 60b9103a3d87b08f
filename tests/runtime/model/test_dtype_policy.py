"""A plan's table of formats is what ranks load, keep and send: bytes of weights, cache and exchanged rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moiety.cost.memory import layer_weight_bytes
from moiety.dtypes import BYTES_PER_ELEMENT, CACHE_BYTES_PER_ELEMENT, ROW_BYTES_PER_ELEMENT
from moiety.graph.graph import build_graph
from moiety.plan import DtypePolicy, Plan
from tests.runtime.checkpoints import save_checkpoint
from tests.runtime.model.cases import case, run

HIDDEN = 256
ALONG = 24
"""Bytes that go with a row of one expert: its key, its slot, the router's weight."""
POLICIES = {
    "bf16": DtypePolicy(),
    "rows in fp8": DtypePolicy(dispatch="fp8"),
    "weights in fp8": DtypePolicy(weights="fp8", experts="fp8"),
    "sums in fp32, cache in fp16": DtypePolicy(combine="fp32", kv_cache="fp16"),
    "fp16, rows in bf16": DtypePolicy(weights="fp16", experts="fp16", activations="fp16"),
    "fp32, cache in fp8": DtypePolicy(
        weights="fp32", experts="fp32", activations="fp32", dispatch="fp32", combine="fp32", kv_cache="fp8"
    ),
}

Outcomes = dict[str, tuple[Plan, list[dict[str, Any]]]]
"""Of each policy the plan, and what each rank reports."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Return what two ranks of one checkpoint do under every policy."""
    folder = tmp_path_factory.mktemp("policies")
    model = save_checkpoint("qwen3_moe", folder / "model", dtype=torch.bfloat16, hidden_size=HIDDEN)
    cases: list[dict[str, Any]] = []
    plans: list[Plan] = []
    for policy in POLICIES.values():
        one = case(model, new=2, strategy="tp1_dp2_ep2", per_node=2, dispatch="flat")
        plan = Plan.model_validate(one["plan"])
        plans.append(plan.model_copy(update={"options": plan.options.model_copy(update={"dtypes": policy})}))
        cases.append({**one, "plan": plans[-1].model_dump(mode="json")})
    return dict(zip(POLICIES, zip(plans, run(cases, ranks=2), strict=True), strict=True))


def test_weights_are_loaded_in_the_plans_formats(outcomes: Outcomes) -> None:
    for plan, ranks in outcomes.values():
        graph = build_graph(plan.model, plan.pools[0], plan.options)
        planned = [layer_weight_bytes(graph.layers[block]) for block in plan.model.layer_blocks]
        element = BYTES_PER_ELEMENT[plan.options.dtypes.activations]
        for rank in ranks:
            held = rank["weight_bytes"]
            assert held["expert_weights"] == pytest.approx(
                sum(experts for _, experts in planned), rel=1e-3
            )  # cut blocks
            assert held["dense_weights"] == pytest.approx(sum(dense for dense, _ in planned), rel=0.03)  # and norms
            assert held["embedding_and_head"] == 2 * plan.model.vocab_size * HIDDEN * element


def test_caches_are_kept_in_the_plans_format(outcomes: Outcomes) -> None:
    _, kept = outcomes["bf16"]
    for plan, ranks in outcomes.values():
        element = CACHE_BYTES_PER_ELEMENT[plan.options.dtypes.kv_cache]
        assert [rank["cache_bytes"] * 2 for rank in ranks] == [rank["cache_bytes"] * element for rank in kept]


def test_rows_travel_in_the_plans_formats(outcomes: Outcomes) -> None:
    for name, (plan, ranks) in outcomes.items():
        dtypes = plan.options.dtypes
        there, back = (HIDDEN * ROW_BYTES_PER_ELEMENT[each] for each in (dtypes.dispatch, dtypes.combine))
        half = plan.model.moe.num_experts // 2 if plan.model.moe is not None else 0
        # (token, expert) pairs of each rank whose expert lives on the other one; experts lie in order
        remote = [
            sum(sum(counts[half:] if rank == 0 else counts[:half]) for counts in ranks[rank]["counts"].values())
            for rank in (0, 1)
        ]
        for rank in (0, 1):
            sent = ranks[rank]["sent"]["exchange"]["sent_bytes"]["node"]
            expected = remote[rank] * (there + ALONG) + remote[1 - rank] * back
            assert sent == pytest.approx(expected, rel=0.002), name  # and how many rows there are
