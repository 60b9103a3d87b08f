"""What a running server says of its experts is what their routers have chosen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

import torch
from prometheus_client.parser import text_string_to_metric_families

from tests.runtime.checkpoints import reference_model, save_checkpoint
from tests.serve.servers import awaited, planned, served

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serve.servers import Server

TOP_K, EXPERTS = 3, 8
WINDOW_S = 0.1


def said(server: Server) -> list[list[float]]:
    """Return the tokens that have chosen each expert, [layers][experts], as the metrics have them."""
    with server.client as client:
        families = {each.name: each for each in text_string_to_metric_families(client.get("/metrics").text)}
    found = {
        (int(each.labels["layer"]), int(each.labels["expert"])): each.value
        for each in families["moiety_expert_tokens"].samples
        if each.name == "moiety_expert_tokens_total"
    }
    layers = 1 + max(layer for layer, _ in found)
    return [[found[layer, expert] for expert in range(EXPERTS)] for layer in range(layers)]


def test_every_choice_of_the_routers_is_counted_without_balancing_too(tmp_path: Path) -> None:
    checkpoint = save_checkpoint("qwen3_moe", tmp_path / "qwen3")
    plan = planned(tmp_path / "plan", checkpoint, "local:2", "tp1_dp2_ep2")
    computed: list[list[int]] = []
    with served(plan, checkpoint, "--window", str(WINDOW_S), "--no-balance") as server:
        for prompt, new in (([1, 2, 3], 9), ([70, 71], 5), ([100], 1)):
            time.sleep(2 * WINDOW_S)  # the first step then brings what was counted before, and its own
            computed.append([*prompt, *server.complete(prompt, new, ignore_eos=True)[:-1]])
        num_choices = TOP_K * sum(map(len, computed))
        awaited(lambda: sum(said(server)[0]) == num_choices)
        counted = said(server)
    model = reference_model(checkpoint)
    expected = [[0] * EXPERTS for _ in counted]
    for tokens in computed:
        router_logits = model(torch.tensor([tokens]), output_router_logits=True).router_logits
        assert len(router_logits) == len(expected)
        for row, logits in zip(expected, router_logits, strict=True):
            for expert in logits.topk(TOP_K, dim=-1).indices.flatten().tolist():
                row[expert] += 1
    assert counted == expected
