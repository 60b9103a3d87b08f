"""A solved placement: the map of its method, and figures that counting token by token gives too."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from moiety.errors import InputError
from moiety.placement.serving.rule import serve
from moiety.placement.solution import COMPARED, compared, solved
from moiety.placement.stage_shape import StageShape
from moiety.workload.routing import Routing
from tests.routed import EXPERTS, LAYERS, TOP_K, planted_routing

MANY = 10**9
ROUTING = planted_routing(480)


def shape(num_slots: int = EXPERTS, domains: tuple[int, ...] | None = (2, 4), expert_tp: int = 1) -> StageShape:
    return StageShape(
        layers=tuple(range(1, LAYERS + 1)),
        num_experts=EXPERTS,
        num_slots=num_slots,
        num_gpus=8,
        num_nodes=1,
        expert_tp=expert_tp,
        domain_gpus=domains,
    )


@pytest.mark.parametrize("num_slots", [16, 24])
@pytest.mark.parametrize("method", ["linear", "balance"])
def test_figures_are_those_of_counting_token_by_token(method: str, num_slots: int) -> None:
    """4 domains of 2 GPUs in 2 of 4; with copies each token from one home only, by turns, which 480 tokens even out."""
    placement = solved(ROUTING, shape(num_slots), method, MANY)
    traffic, width = placement.traffic, num_slots // 8
    assert traffic is not None
    assert ROUTING.topk is not None
    sums: Counter[tuple[str, int]] = Counter()
    for slots, experts in zip(placement.physical_to_logical_map, ROUTING.topk, strict=True):
        for home in range(4):
            token = np.arange(480)
            served = serve(np.array(slots), experts, np.full(480, home), token, num_gpus=8, num_nodes=4)
            for chosen in served // width:
                gpus = set(chosen.tolist())
                sums["reached", 0] += len(gpus)
                for domain in (2, 4):
                    own = home * 2 // domain
                    far = [gpu for gpu in chosen.tolist() if gpu // domain != own]
                    sums["messages", domain] += len(far)
                    sums["ranks", domain] += len(set(far))
                    sums["narrower", domain] += len({gpu // (1 if domain == 2 else 2) for gpu in far})
                    sums["domains", domain] += len({gpu // domain for gpu in far})
    tokens = 480 * 4 * LAYERS
    exact = {"messages", "ranks"}
    assert traffic.reached_ranks == pytest.approx(sums["reached", 0] / tokens, abs=1e-5)
    for found in traffic.domains:
        for name in ("messages", "ranks", "narrower", "domains"):
            close = 1e-5 if name in exact or found.num_gpus == 2 else 0.05
            assert getattr(found, name) == pytest.approx(sums[name, found.num_gpus] / tokens, abs=close), name


def test_served_loads_share_the_work_and_are_left_out_without_copies() -> None:
    with_copies, without = (solved(ROUTING, shape(slots), "balance", MANY).traffic for slots in (24, 16))
    assert with_copies is not None
    assert without is not None
    assert without.rank_loads == ()
    assert np.array(with_copies.rank_loads).shape == (LAYERS, 8)
    assert np.array(with_copies.rank_loads).mean(axis=1) == pytest.approx(1, abs=1e-3)


def test_a_small_sample_is_close_to_the_whole_trace() -> None:
    routing = planted_routing(20_000)
    whole, part = (solved(routing, shape(24), "balance", most).traffic for most in (MANY, 10_000))
    assert whole is not None
    assert part is not None
    assert part.domains[0].domains == pytest.approx(whole.domains[0].domains, rel=0.03)
    assert np.array(part.rank_loads) == pytest.approx(np.array(whole.rank_loads), abs=0.05)


def test_expert_ranks_of_several_gpus_count_as_one() -> None:
    placement = solved(ROUTING, shape(domains=(4,), expert_tp=2), "balance", MANY)
    assert placement.num_expert_ranks == 4
    assert placement.traffic is not None
    assert placement.traffic.domains[0].num_gpus == 4
    assert placement.traffic.domains[0].messages == pytest.approx(TOP_K / 2)


def test_without_a_trace_there_are_loads_alone() -> None:
    counts = Routing(counts=ROUTING.counts)
    assert solved(counts, shape(), "balance", MANY).traffic is None
    assert solved(ROUTING, shape(domains=None), "balance", MANY).traffic is None
    assert compared(counts, shape(), MANY) == ()
    assert solved(ROUTING, shape(), "balance").traffic is None


def test_other_methods_are_measured_as_they_would_be_alone() -> None:
    for each in compared(ROUTING, shape(24), MANY):
        assert each.traffic == solved(ROUTING, shape(24), each.method, MANY).traffic
        assert 0 < each.balance <= 1
    assert tuple(each.method for each in compared(ROUTING, shape(24), MANY)) == COMPARED


def test_a_question_is_answered_once_and_an_unknown_method_refused() -> None:
    assert solved(ROUTING, shape(), "balance", MANY) is solved(ROUTING, shape(), "balance", MANY)
    with pytest.raises(InputError, match="no such placement method"):
        solved(ROUTING, shape(), "balanced")
