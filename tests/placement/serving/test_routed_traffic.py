"""Measured traffic is refused where no placement could have it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from moiety.placement.serving.routed_traffic import DomainReach, RoutedTraffic


def reach(num_gpus: int = 4, **changes: float) -> DomainReach:
    return DomainReach(num_gpus=num_gpus, **({"messages": 2, "ranks": 1.5, "narrower": 1.5, "domains": 1} | changes))


def traffic(*domains: DomainReach) -> RoutedTraffic:
    return RoutedTraffic(top_k=4, reached_ranks=3, domains=domains, num_tokens=10)


def test_what_leaves_a_domain_is_found_by_its_width() -> None:
    found = traffic(reach(4), reach(8, messages=1, ranks=1, narrower=1, domains=0.5))
    assert found.outside(8) == found.domains[1]
    assert found.outside(2) is None
    assert found.remote_domains == 1
    assert traffic().remote_domains == 0


@pytest.mark.parametrize(
    "domains",
    [
        (reach(messages=5),),  # more than the experts of a token
        (reach(ranks=2.5),),  # more than the messages
        (reach(messages=4, ranks=3.5),),  # more than the ranks reached at all
        (reach(domains=1.6),),
        (reach(narrower=1.6),),  # more than the ranks
        (reach(4, messages=1, ranks=1, domains=1), reach(8)),  # more leaves the wider domain
        (reach(4), reach(6, messages=1, ranks=1, domains=1)),  # not one in the other
    ],
)
def test_impossible_traffic_is_refused(domains: tuple[DomainReach, ...]) -> None:
    with pytest.raises(ValidationError):
        traffic(*domains)


@pytest.mark.parametrize("ranks", [0.0, 4.1, 1e308])
def test_a_token_reaches_a_rank_and_no_more_than_its_experts(ranks: float) -> None:
    with pytest.raises(ValidationError, match="cannot reach"):
        RoutedTraffic(top_k=4, reached_ranks=ranks, domains=(), num_tokens=10)


@pytest.mark.parametrize("loads", [(0.0, 0.0), (2.1, 0.0), ()])
def test_served_loads_are_of_some_work_and_no_more_than_all(loads: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="busiest rank"):
        RoutedTraffic(top_k=4, reached_ranks=3, domains=(), num_tokens=10, rank_loads=(loads,))
