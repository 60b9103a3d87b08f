"""The core over whole instances: signs of life, the demand, and what is to be done about both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moiety.control.apply import apply
from moiety.control.decide import settle
from moiety.control.events import Heartbeat, Joined, Moved, RequestMetrics, Timer
from moiety.control.scrape import Scrape, balancedness, request_metrics
from moiety.control.state import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.control.commands import Command
    from moiety.control.state import State
    from moiety.watch.known import Seen, Watch
    from moiety.watch.site import Site


def next_fleet(
    watch: Watch, site: Site, answering: Sequence[bool], requests: RequestMetrics | None, now: float
) -> tuple[State | None, frozenset[int], tuple[Command, ...]]:
    """Return the state of the instances, those drained ones that are silent, and what is to be done."""
    fleet = watch.fleet
    if fleet is None:
        if not any(answering):
            return None, watch.away, ()
        fleet = site.starting_fleet(answering, now)
    away = {at for at, there in enumerate(answering) if not there and fleet.ranks.status[at] == Status.PARKED}
    away |= {at for at in watch.away if fleet.ranks.status[at] == Status.PARKED}
    for at in (at for at, there in enumerate(answering) if there):
        status = fleet.ranks.status[at]
        if status == Status.FENCED or (status == Status.PARKED and (at in fleet.asked or at in away)):
            fleet = apply(Joined(now, at), fleet)
            away.discard(at)
        elif status != Status.PARKED:
            fleet = apply(Heartbeat(now, at, fleet.epoch, 0, waiting=False), fleet)
    fleet = apply(Timer(now) if requests is None else requests, fleet)
    fleet, commands = at_rest(fleet, now)
    return fleet, frozenset(away), commands


def request_figures(
    watch: Watch, site: Site, seen: Seen, answering: Sequence[bool], now: float
) -> tuple[RequestMetrics | None, float | None]:
    """Return what users saw and SGLang's balancedness over all instances since the last round.

    There is nothing of the former while an instance that should work is not heard: what it serves is not seen.
    """
    pairs = [(before, after) for before, after in pairs_of(watch, seen).values()]
    balances = [each for each in (balancedness(*pair) for pair in pairs) if each is not None]
    measured = float(np.mean(balances)) if balances else None
    fleet = watch.fleet
    expected = [True] * len(answering) if fleet is None else (fleet.ranks.status <= Status.LEAVING).tolist()
    if any(should and not does for should, does in zip(expected, answering, strict=True)):
        return None, measured
    found = [each for each in (request_metrics(*pair, site.counted, at_s=now) for pair in pairs) if each is not None]
    if not found:
        return None, measured
    timed = [(each.served_tokens_per_s, each.tpot_s) for each in found if each.tpot_s is not None]
    weight = sum(tokens for tokens, _ in timed)
    tpot_s = sum(tokens * tpot for tokens, tpot in timed) / weight if weight > 0 else None
    queued = [each.backlog_tokens for each in found if each.backlog_tokens is not None]
    backlog = sum(queued) if queued else None
    return RequestMetrics(now, sum(each.served_tokens_per_s for each in found), tpot_s, backlog), measured


def pairs_of(watch: Watch, seen: Seen) -> dict[str, tuple[Scrape, Scrape]]:
    """Return the last and the present reading of each address that has both."""
    last = watch.scrapes
    return {url: (last[url], each) for url, each in seen.readings.items() if isinstance(each, Scrape) and url in last}


def at_rest(state: State, now: float) -> tuple[State, tuple[Command, ...]]:
    """Return the state when every move is done as soon as it is asked for: it is a line of a file, or a start."""
    given: tuple[Command, ...] = ()
    while True:
        state, commands = settle(state, now)
        given += commands
        if not state.pending:
            return state, given
        for move in state.pending:
            state = apply(Moved(now, state.epoch, *move[:4]), state)
