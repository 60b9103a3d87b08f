"""Over a slow network between nodes: hierarchical exchange sends fewer bytes and is done sooner, with equal bits."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from benchmarks.dispatch import Case, measure
from tests.ranks import run_ranks
from tests.two_tier import obstacle, two_tier


def test_hierarchical_exchange_beats_flat_over_shaped_links() -> None:
    reason = obstacle()
    if reason is not None:
        pytest.skip(reason)
    case = Case("50 Mbit/s, top-8", 50e6, 8)
    with two_tier(2, case.rate_bits_per_s) as nodes:
        ranks = run_ranks(measure, 4, case, 2, 128, nodes=nodes, timeout_s=120.0)
    for rank in ranks:
        assert len({bits for _, _, bits in rank.values()}) == 1
    sent = {way: sum(rank[way][1] for rank in ranks) for way in ranks[0]}
    seconds = {way: max(rank[way][0] for rank in ranks) for way in ranks[0]}
    assert sent["hierarchical"] < sent["dedup"] < sent["flat"] / 2
    assert seconds["hierarchical, 4 chunks"] < seconds["flat"] / 1.5
