"""The network is cut between one rank and the others: these go on, it cannot; when the network heals it is whole.

Then between two ranks and the server, which cannot even kill them: they end themselves.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

from tests.chaos.cluster import NUM_RANKS, Fleet
from tests.chaos.far import RANKS_FAR_AWAY, RANKS_OF_THE_USER
from tests.chaos.partition import cuttable_network
from tests.chaos.streams import Stream, longest_gap_s
from tests.runtime.launched import is_gone
from tests.serve.servers import awaited, served
from tests.two_tier import obstacle

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.cluster import Answer
    from tests.chaos.recoveries import Recover

OBSTACLE = obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=OBSTACLE or "")

BAR_S = 20.0
"""All wait for 5 s; they meet anew twice, each time for as long as a connection may take."""
ORPHAN_BAR_S = 25.0
"""Ranks bear the server's silence for 15 s, as it may be busy."""


def test_the_minority_cannot_go_on_and_the_majority_does(
    plan: Path, checkpoint: Path, answers: list[Answer], recover: Recover
) -> None:
    alone = NUM_RANKS - 1
    with cuttable_network() as network:
        fleet = Fleet(plan, checkpoint, module="tests.chaos.far", env={**os.environ, RANKS_OF_THE_USER: str(alone)})
        try:
            server = fleet.server()
            *majority, minority = (each["pid"] for each in server.ranks())
            epoch = server.epoch()
            gap_s = longest_gap_s(server, answers, network.cut)
            assert is_gone(minority), "it might go on with what it has"
            assert [each["pid"] for each in server.ranks()][: len(majority)] == majority
            assert server.epoch() > epoch
            network.heal()
            began_s = time.monotonic()
            assert set(majority) < {each["pid"] for each in fleet.server().ranks()}
            joined_s = time.monotonic() - began_s
            prompt, tokens = answers[0]
            assert server.complete(prompt, len(tokens)) == tokens
        finally:
            fleet.close()
    recover("network cut between 1 of 3 ranks and the rest", gap_s, bar_s=BAR_S, of="longest gap of a stream")
    recover("network cut between 1 of 3 ranks and the rest", joined_s, bar_s=None, of="from its healing to 3 of 3")


def test_ranks_that_the_server_cannot_reach_end_themselves_and_it_goes_on_with_the_others(
    plan: Path, checkpoint: Path, answers: list[Answer], recover: Recover
) -> None:
    env = {**os.environ, RANKS_FAR_AWAY: ",".join(str(rank) for rank in range(1, NUM_RANKS))}
    options = ("--quiet", "--max-restarts", "0")
    with (
        cuttable_network() as network,
        served(plan, checkpoint, *options, module="tests.chaos.far", env=env) as server,
    ):
        near, *away = (each["pid"] for each in server.ranks())
        streams = [Stream(server, prompt, len(tokens)) for prompt, tokens in answers]
        awaited(lambda: all(each.tokens for each in streams))
        network.cut()
        began_s = time.monotonic()
        awaited(lambda: [each["pid"] for each in server.ranks()] == [near])
        for stream, (_, tokens) in zip(streams, answers, strict=True):
            stream.check(tokens)
        awaited(lambda: all(is_gone(each) for each in away))
        ended_s = time.monotonic() - began_s
        prompt, tokens = answers[0]
        assert server.complete(prompt, len(tokens)) == tokens
        assert [each["pid"] for each in server.ranks()] == [near]
    fault = "network cut between the server and 2 of 3 ranks"
    recover(fault, max(each.longest_gap_s for each in streams), bar_s=BAR_S, of="longest gap of a stream")
    recover(fault, ended_s, bar_s=ORPHAN_BAR_S, of="until these have ended themselves")
