"""Activations beyond their number format end the request that has them, and no rank; the others go on exactly."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

from tests.runtime.checkpoints import OVERFLOWING, save_overflowing
from tests.serve.servers import awaited, planned, served

if TYPE_CHECKING:
    from pathlib import Path

OTHERS = {"prompt": [[5, 9, 11], [100, 2, 50, 4]], "max_tokens": 12, "return_token_ids": True}
POISON = [3, OVERFLOWING, *range(1, 20)]
WINDOW_S = 0.25


@pytest.mark.parametrize(("strategy", "ranks", "temperature"), [("tp1_dp1", 1, 0.0), ("tp2", 2, 1.0)])
def test_a_request_whose_logits_are_not_finite_is_refused(
    strategy: str, ranks: int, temperature: float, tmp_path: Path
) -> None:
    checkpoint = save_overflowing(tmp_path / "qwen3")
    formats = ("--set", "dtypes.activations=fp16", "--set", "dtypes.kv_cache=fp16")
    plan = planned(tmp_path / "plan", checkpoint, f"local:{ranks}", strategy, *formats)
    drawing = {"temperature": temperature, "seed": 3}
    with served(plan, checkpoint, "--max-sequences", "3") as server, server.client as client:

        def told(**body: object) -> list[list[int]]:
            answer = client.post("/v1/completions", json={**OTHERS, **drawing, **body})
            assert answer.status_code == 200, answer.text
            return [each["token_ids"] for each in answer.json()["choices"]]

        expected, pids = told(), [each["pid"] for each in server.ranks()]
        together = client.post(
            "/v1/completions", json={**OTHERS, **drawing, "prompt": [[7, 7], POISON], "max_tokens": 1}
        )
        assert (together.status_code, together.json()["error"]["type"]) == (500, "server_error")
        assert "the logits of the next token are not finite" in together.json()["error"]["message"]
        assert server.metric("moiety_requests_total", finish_reason="failed") == 1
        for _ in range(2):  # in every row of the cache, that of the refused request among them
            assert told(prompt=[[1] * 30, *OTHERS["prompt"]])[1:] == expected  # type: ignore[misc]
        assert [each["pid"] for each in server.ranks()] == pids
        assert server.epoch() == 1


def test_a_token_that_was_refused_is_no_token_served(tmp_path: Path) -> None:
    checkpoint = save_overflowing(tmp_path / "qwen3")
    formats = ("--set", "dtypes.activations=fp16", "--set", "dtypes.kv_cache=fp16")
    plan = planned(tmp_path / "plan", checkpoint, "local:1", "tp1_dp1", *formats)
    with served(plan, checkpoint, "--window", str(WINDOW_S)) as server:

        def demand() -> float:
            return server.metric("moiety_demand_tokens_per_second")

        assert len(server.complete([5, 9, 11], 12)) == 12
        awaited(lambda: demand() > 0)
        assert server.metric("moiety_generation_tokens_total") == 12
        awaited(lambda: demand() == 0)
        with server.client as client:
            body = {"prompt": POISON, "max_tokens": 1}
            assert [client.post("/v1/completions", json=body).status_code for _ in range(3)] == [500] * 3
        until_s, seen = time.monotonic() + 3 * WINDOW_S, set[float]()
        while time.monotonic() < until_s:
            seen.add(demand())
        assert seen == {0.0}
        assert server.metric("moiety_generation_tokens_total") == 12
