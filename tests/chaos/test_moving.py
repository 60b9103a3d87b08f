"""The server, which decides, is killed while experts move: nothing of it outlives it, and another one serves."""

from __future__ import annotations

import itertools
import json
import os
import signal
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


def _killed_while_experts_move(server: Server, expected: dict[int, list[int]], struck: Path) -> float:
    """Send prompts until experts are on their way and the server is killed; return how long its ranks outlive it."""
    deadline_s = time.monotonic() + PATIENCE_S
    for prompt in itertools.cycle(PROMPTS):
        stream = Stream(server, prompt, NEW)
        stream.join(PATIENCE_S)
        if not stream.is_complete:
            break
        stream.check(expected[prompt[0]])
        assert time.monotonic() < deadline_s, f"no expert has moved: {server.control()}"
    assert stream.tokens == expected[prompt[0]][: len(stream.tokens)]
    assert server.process.wait(PATIENCE_S) == -signal.SIGKILL, stream.error
    killed = json.loads(struck.read_text())
    awaited(lambda: all(is_gone(pid) for pid in killed["pids"]))
    return time.monotonic() - killed["time_s"]


def test_the_server_is_killed_while_experts_move(tmp_path: Path, recover: Recover) -> None:
    checkpoint = skewed_checkpoint(tmp_path / "qwen3")
    oracle = reference_model(checkpoint)
    expected = {prompt[0]: greedy_continuation(oracle, prompt, NEW) for prompt in PROMPTS}
    plan = planned(tmp_path / "plan", checkpoint, "local:2", "tp1_dp2_ep2")
    before = {file: file.read_bytes() for file in plan.iterdir()}
    struck = tmp_path / "struck"
    environment = {**os.environ, "STRUCK": str(struck)}
    with served(plan, checkpoint, "--window", "0.3", module="tests.chaos.struck", env=environment) as server:
        ended_s = _killed_while_experts_move(server, expected, struck)
    assert {file: file.read_bytes() for file in plan.iterdir()} == before, "the plan is as it was"
    with served(plan, checkpoint) as again:
        assert [again.complete(prompt, NEW) for prompt in PROMPTS] == [expected[prompt[0]] for prompt in PROMPTS]
        assert [each["experts"] for each in again.ranks()] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    recover("SIGKILL to the server while experts move", ended_s, bar_s=ENDED_BAR_S, of="until its ranks are gone")
