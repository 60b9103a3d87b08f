"""The server, which decides, is killed while experts move: nothing of it outlives it, and another one serves."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

from tests.chaos.streams import Stream
from tests.runtime.checkpoints import greedy_continuation, reference_model
from tests.runtime.launched import is_gone
from tests.serve.servers import awaited, planned, served
from tests.serve.skewed import skewed_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.recoveries import Recover
    from tests.serve.servers import Server

PROMPTS = [[1 + 7 * index + place for place in range(24)] for index in range(4)]
"""Of tokens whose experts all lie on one rank of two."""
NEW, PATIENCE_S = 2, 120.0
ENDED_BAR_S = 5.0


def _kill_while_experts_move(server: Server, expected: dict[int, list[int]]) -> float:
    """Send prompts until experts are on their way, and kill the server then; return how long its ranks outlive it."""
    prompts, deadline_s = itertools.cycle(PROMPTS), time.monotonic() + PATIENCE_S
    prompt = next(prompts)
    stream = Stream(server, prompt, NEW)
    with server.client as client:
        said = client.get("/ranks").json()
        while not said["control"]["pending_moves"]:
            assert time.monotonic() < deadline_s, f"no expert was seen to move: {said}"
            if not stream.is_alive():
                stream.check(expected[prompt[0]])
                prompt = next(prompts)
                stream = Stream(server, prompt, NEW)
            said = client.get("/ranks").json()
    server.process.kill()
    began_s = time.monotonic()
    awaited(lambda: all(is_gone(each["pid"]) for each in said["ranks"]))
    ended_s = time.monotonic() - began_s
    stream.join(PATIENCE_S)
    assert stream.tokens == expected[prompt[0]][: len(stream.tokens)]
    return ended_s


def test_the_server_is_killed_while_experts_move(tmp_path: Path, recover: Recover) -> None:
    checkpoint = skewed_checkpoint(tmp_path / "qwen3")
    oracle = reference_model(checkpoint)
    expected = {prompt[0]: greedy_continuation(oracle, prompt, NEW) for prompt in PROMPTS}
    plan = planned(tmp_path / "plan", checkpoint, "local:2", "tp1_dp2_ep2")
    before = {file: file.read_bytes() for file in plan.iterdir()}
    with served(plan, checkpoint, "--window", "0.3") as server:
        ended_s = _kill_while_experts_move(server, expected)
    assert {file: file.read_bytes() for file in plan.iterdir()} == before, "the plan is as it was"
    with served(plan, checkpoint) as again:
        assert [again.complete(prompt, NEW) for prompt in PROMPTS] == [expected[prompt[0]] for prompt in PROMPTS]
        assert [each["experts"] for each in again.ranks()] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    recover("SIGKILL to the server while experts move", ended_s, bar_s=ENDED_BAR_S, of="until its ranks are gone")
