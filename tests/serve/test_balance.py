"""A running server's experts: they stay while the load does, and move, live, when it drifts; no token changes."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

from tests.chaos.streams import Stream
from tests.runtime.checkpoints import greedy_continuation, reference_model
from tests.serve.pondering import BEGAN, MAY_END
from tests.serve.servers import awaited, ended, planned, served
from tests.serve.skewed import HALF, skewed_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serve.servers import Server

FIRST = [[1 + 7 * index + place for place in range(24)] for index in range(4)]
SECOND = [[HALF + token for token in prompt] for prompt in FIRST]
NEW, LONG = 2, 300
WINDOWS = 12
"""In which nothing may move; drift is looked for from the eighth on."""


class Traffic(threading.Thread):
    """A client that asks for one prompt after the other, again and again."""

    def __init__(self, server: Server, prompts: list[list[int]], expected: dict[int, list[int]]) -> None:
        super().__init__(daemon=True)
        self.wrong: list[list[int]] = []
        self._server, self._prompts, self._expected = server, prompts, expected
        self._is_over = threading.Event()

    def run(self) -> None:
        for prompt in itertools.cycle(self._prompts):
            if self._is_over.is_set():
                return
            tokens = self._server.complete(prompt, NEW)
            if tokens != self._expected[prompt[0]]:
                self.wrong.append(prompt)

    def end(self) -> None:
        """Let the last prompt be the last."""
        self._is_over.set()
        self.join()
        assert not self.wrong


def test_experts_stay_while_the_load_does_and_follow_it_when_it_drifts(tmp_path: Path) -> None:
    """And while a search for moves goes on, so do answers."""
    checkpoint = skewed_checkpoint(tmp_path / "qwen3")
    oracle = reference_model(checkpoint)
    expected = {prompt[0]: greedy_continuation(oracle, prompt, NEW) for prompt in (*FIRST, *SECOND)}
    streams = [greedy_continuation(oracle, [prompt[0]], LONG) for prompt in (FIRST[0], SECOND[0])]
    plan = planned(tmp_path / "plan", checkpoint, "local:2", "tp1_dp2_ep2")
    mixed = [prompt for pair in zip(FIRST, SECOND, strict=True) for prompt in pair]
    pondering = {**os.environ, "PONDERING": str(tmp_path)}
    with served(plan, checkpoint, "--window", "0.5", module="tests.serve.pondering", env=pondering) as server:
        assert [each["experts"] for each in server.ranks()] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        epoch = server.epoch()
        steady = Traffic(server, mixed, expected)
        steady.start()
        awaited(lambda: server.control()["windows"] >= WINDOWS, within_s=240.0)
        steady.end()
        assert server.control()["moves"] == server.metric("moiety_expert_moves_total") == 0
        assert not (tmp_path / BEGAN).exists(), "nothing is searched while nothing has changed"
        drifted = Traffic(server, FIRST, expected)
        drifted.start()
        awaited((tmp_path / BEGAN).exists, within_s=240.0)
        for prompt in SECOND:
            assert server.complete(prompt, NEW) == expected[prompt[0]]
        assert server.control()["moves"] == 0, "the search goes on"
        (tmp_path / MAY_END).touch()
        readers = [Stream(server, [prompt[0]], LONG) for prompt in (FIRST[0], SECOND[0])]
        awaited(lambda: server.control()["moves"] > 0 and not server.control()["pending_moves"], within_s=240.0)
        for each in readers:
            each.join(timeout=240.0)
        drifted.end()
        assert [each.tokens for each in readers] == streams
        assert server.metric("moiety_expert_moves_total") == server.control()["moves"]
        assert server.epoch() == epoch, "nobody had to meet anew"
        held = [set(each["experts"]) for each in server.ranks()]
        assert all(each & {0, 1, 2} for each in held), "both ranks have some of what is asked for"
        assert server.metric("moiety_expert_load", layer="0", expert="0") > server.metric(
            "moiety_expert_load", layer="0", expert="4"
        )


def test_moves_for_slots_that_ranks_do_not_have_are_dropped_and_decided_anew(tmp_path: Path) -> None:
    checkpoint = skewed_checkpoint(tmp_path / "qwen3")
    oracle = reference_model(checkpoint)
    expected = {prompt[0]: greedy_continuation(oracle, prompt, NEW) for prompt in FIRST}
    plan = planned(tmp_path / "plan", checkpoint, "local:2", "tp1_dp2_ep2")
    with served(plan, checkpoint, "--window", "0.5", module="tests.serve.misled") as server:
        epoch = server.epoch()
        drifted = Traffic(server, FIRST, expected)
        drifted.start()
        awaited(lambda: server.epoch() > epoch, within_s=240.0)
        awaited(lambda: server.control()["moves"] > 0 and not server.control()["pending_moves"], within_s=240.0)
        drifted.end()
        assert server.epoch() == epoch + 1, "what was decided anew fits"
        assert server.metric("moiety_recoveries_total") == 0, "nobody was lost"
        server.process.send_signal(signal.SIGTERM)
        code, errors = ended(server)
    assert code == 0
    assert "decided anew: moves[" in errors
