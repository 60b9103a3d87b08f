"""A server whose nodes follow its traffic: one when little is asked for, both when much is; no token changes."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

from tests.chaos.streams import Stream
from tests.cli.command import moiety
from tests.runtime.checkpoints import greedy_continuation, reference_model, save_checkpoint
from tests.runtime.launched import is_gone
from tests.serve.servers import awaited, served, with_latency_limit
from tests.serve.tight import tightened

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serve.servers import Server

PROMPTS = [[5, 9, 11], [7] * 30, [3], [100, 2, 50, 4]]
LONG, SHORT = 120, 4
LOAD = ("--concurrency", "4", "--input-tokens", "16", "--output-tokens", "16")
"""What the plan takes a node to do: little, so that few clients are much."""
MUCH = ("--concurrency", "64", "--input-tokens", "16", "--output-tokens", "16")
"""The same for many rows: what a node does with the two that it is given is far below that."""
NODES = ["working", "working", "parked", "parked"]


def planned(folder: Path, checkpoint: Path, load: tuple[str, ...] = LOAD) -> Path:
    division = ("--cluster", "local:2x2", "--strategy", "tp1_dp4_ep4")
    done = moiety("plan", checkpoint, *division, *load, "--quiet", "--out", folder)
    assert done.code == 0, done.err
    return folder


def statuses(server: Server) -> list[str]:
    return server.control()["statuses"]


class Crowd:
    """Clients that ask again and again, until they are told to end."""

    def __init__(self, server: Server, expected: list[list[int]], num_clients: int) -> None:
        self.answers = 0
        self.wrong: list[list[int]] = []
        self._is_over = threading.Event()
        self._server, self._expected = server, expected
        self._threads = [threading.Thread(target=self._ask, args=(each,)) for each in range(num_clients)]
        for each in self._threads:
            each.start()

    def _ask(self, number: int) -> None:
        index = number % len(PROMPTS)
        while not self._is_over.is_set():
            tokens = self._server.complete(PROMPTS[index], LONG)
            if tokens != self._expected[index]:
                self.wrong.append(tokens)
            self.answers += 1

    def end(self) -> None:
        """Let the last answers be the last."""
        self._is_over.set()
        for each in self._threads:
            each.join()
        assert not self.wrong


def test_nodes_follow_the_traffic_and_no_token_changes(tmp_path: Path) -> None:
    checkpoint = save_checkpoint("qwen3_moe", tmp_path / "qwen3")
    oracle = reference_model(checkpoint)
    expected = [greedy_continuation(oracle, prompt, LONG) for prompt in PROMPTS]
    plan = planned(tmp_path / "plan", checkpoint)
    with served(plan, checkpoint, "--scale-nodes", "1", "--window", "0.25", "--max-restarts", "0") as server:
        before = [each["pid"] for each in server.ranks()]
        reader = Stream(server, PROMPTS[0], LONG)
        awaited(lambda: statuses(server) == NODES, within_s=120.0)
        reader.check(expected[0])
        assert [each["pid"] for each in server.ranks()] == before[:2], "those that stay go on in their processes"
        awaited(lambda: all(is_gone(each) for each in before[2:]))
        assert {expert for each in server.ranks() for expert in each["experts"]} == set(range(8))
        crowd = Crowd(server, expected, 12)
        awaited(lambda: statuses(server) == ["working"] * 4, within_s=180.0)
        awaited(lambda: [each["state"] for each in server.ranks()] == ["ready"] * 4)
        assert [each["pid"] for each in server.ranks()][:2] == before[:2]
        crowd.end()
        awaited(lambda: statuses(server) == NODES, within_s=120.0)
        assert server.complete(PROMPTS[1], SHORT) == expected[1][:SHORT]
        assert server.metric("moiety_recoveries_total") == 0, "nobody was lost"


def test_nodes_grow_by_what_waits_though_no_more_can_be_served(tmp_path: Path) -> None:
    checkpoint = save_checkpoint("qwen3_moe", tmp_path / "qwen3")
    expected = [greedy_continuation(reference_model(checkpoint), prompt, LONG) for prompt in PROMPTS]
    plan = with_latency_limit(planned(tmp_path / "plan", checkpoint, MUCH), None)
    few_rows = ("--max-sequences", "1", "--max-waiting", "300")
    with served(plan, checkpoint, "--scale-nodes", "1", "--window", "0.25", *few_rows) as server:
        busy = Crowd(server, expected, 2)
        awaited(lambda: statuses(server) == NODES, within_s=120.0)
        answers = busy.answers
        awaited(lambda: busy.answers >= answers + 4, within_s=120.0)
        assert statuses(server) == NODES, "the node's two rows are full, and that is no reason for another node"
        with ExitStack() as queue:

            def grows() -> bool:
                """Have more wait, of whom nothing is served for now, and say whether nodes have come for that."""
                body = {"prompt": [3], "n": 20, "max_tokens": LONG, "stream": True}
                client = queue.enter_context(server.client)
                queue.enter_context(client.stream("POST", "/v1/completions", json=body))
                time.sleep(0.25)
                return statuses(server) == ["working"] * 4

            awaited(grows, within_s=180.0)
            assert server.metric("moiety_backlog_tokens") > 0
        busy.end()


def test_where_fewer_nodes_cannot_hold_the_model_it_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = save_checkpoint("qwen3_moe", tmp_path / "qwen3")
    plan = tightened(planned(tmp_path / "plan", checkpoint), 3)
    for nodes, rule in (("1", "a node has memory for 6 of a layer's 8 experts"), ("2", "less than the 2 nodes")):
        done = moiety("serve", plan, "--checkpoint", checkpoint, "--scale-nodes", nodes)
        assert done.code == 2
        assert "--scale-nodes" in done.err
        assert rule in done.err
