"""The network is cut between one rank and the others: these go on, it cannot; when the network heals it is whole."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

from tests.chaos.cluster import NUM_RANKS, Fleet
from tests.chaos.partition import cuttable_network
from tests.chaos.streams import longest_gap_s
from tests.runtime.launched import is_gone
from tests.two_tier import obstacle

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.cluster import Answer
    from tests.chaos.recoveries import Recover

OBSTACLE = obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=OBSTACLE or "")

BAR_S = 20.0
"""All wait for 5 s; they meet anew twice, each time for as long as a connection may take."""


def test_the_minority_cannot_go_on_and_the_majority_does(
    plan: Path, checkpoint: Path, answers: list[Answer], recover: Recover, tmp_path: Path
) -> None:
    alone = NUM_RANKS - 1
    with cuttable_network(tmp_path, alone) as network:
        fleet = Fleet(plan, checkpoint)
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
