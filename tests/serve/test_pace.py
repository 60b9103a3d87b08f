"""A rank of a pipeline that has become far slower: noticed by its past and replaced, no token changes."""

from __future__ import annotations

import itertools
import signal
import threading
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

from tests.chaos.faults import slowed
from tests.runtime.checkpoints import greedy_continuation, reference_model, save_checkpoint
from tests.runtime.launched import is_gone
from tests.serve.servers import awaited, ended, planned, served

if TYPE_CHECKING:
    from pathlib import Path

PROMPT, NEW = [5, 9, 11], 40


def test_a_rank_of_a_stage_of_two_that_becomes_far_slower_is_replaced(tmp_path: Path) -> None:
    checkpoint = save_checkpoint("qwen3_moe", tmp_path / "qwen3")
    expected = greedy_continuation(reference_model(checkpoint), PROMPT, NEW)
    plan = planned(tmp_path / "plan", checkpoint, "local:4", "tp1_dp2_ep2_pp2")
    with served(plan, checkpoint) as server:
        wrong: list[list[int]] = []
        is_over = threading.Event()

        def ask() -> None:
            for _ in itertools.takewhile(lambda _: not is_over.is_set(), itertools.count()):
                tokens = server.complete(PROMPT, NEW)
                if tokens != expected:
                    wrong.append(tokens)

        clients = [threading.Thread(target=ask) for _ in range(6)]
        for each in clients:
            each.start()
        awaited(lambda: server.control()["is_pace_known"] == [True] * 4, within_s=120.0)
        victim = server.ranks()[3]["pid"]  # of the last stage
        with slowed(victim, 0.01, 0.2):
            awaited(lambda: is_gone(victim), within_s=120.0)
        awaited(lambda: [each["state"] for each in server.ranks()] == ["ready"] * 4, within_s=120.0)
        is_over.set()
        for each in clients:
            each.join()
        server.process.send_signal(signal.SIGTERM)
        code, errors = ended(server)
    assert code == 0
    assert f"rank 3 (pid {victim}) was fenced: slow: rank 3" in errors
    assert not wrong
