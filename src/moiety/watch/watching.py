"""A round of watching, pure: what was seen goes to the core, and what the core decides becomes a map and advice."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moiety.control.apply import apply
from moiety.control.events import ExpertCounts, Timer
from moiety.control.scrape import Scrape, restarted
from moiety.watch.advice import Advice, expected_peaks, fleet_advice, placement_advice
from moiety.watch.conditions import conditions_of
from moiety.watch.fleet import at_rest, next_fleet, pairs_of, request_figures
from moiety.watch.known import Round, Watch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moiety.control.events import RequestMetrics
    from moiety.control.state import State
    from moiety.placement.problem import SlotMap
    from moiety.watch.conditions import Condition
    from moiety.watch.dumps import Dumps, Mark
    from moiety.watch.known import Seen
    from moiety.watch.site import Site

KEPT_ADVICE = 1000
_LONGEST_STEP = 2.0
"""Intervals that the clock of the decisions goes on at once: it stands still while nobody watches."""


def started(site: Site) -> Watch:
    """Return what is known before the first round."""
    return Watch(experts=site.starting_experts(), fleet=None, in_force=site.slot_map, previous=None)


def next_round(watch: Watch, site: Site, seen: Seen) -> tuple[Watch, Round]:
    """Return what is known after a round, and what it came to; the same input gives the same result."""
    elapsed_s = 0.0 if watch.time_s is None else seen.time_s - watch.time_s
    now = watch.clock_s + min(max(elapsed_s, 0.0), _LONGEST_STEP * site.interval_s)
    answering = [all(isinstance(seen.readings[url], Scrape) for url in urls) for urls in site.instances]
    requests, measured = request_figures(watch, site, seen, answering, now)
    fleet, away, commands = next_fleet(watch, site, answering, requests, now)
    experts, in_force = _next_experts(watch, seen, now), _in_force(watch, seen)
    read = {url: each for url, each in seen.readings.items() if isinstance(each, Scrape)}
    after = replace(
        watch,
        experts=experts,
        fleet=fleet,
        in_force=in_force,
        time_s=seen.time_s,
        clock_s=now,
        away=away,
        scrapes={**watch.scrapes, **read},
        **_next_dumps(watch, seen.dumps),
    )
    advice = [] if fleet is None else fleet_advice(commands, fleet, site)
    advice += _restarts(watch, seen)
    moves = int((after.placement != watch.placement).sum())
    if moves:
        advice.insert(0, placement_advice(experts, watch.placement, in_force, site))
        after = replace(after, previous=watch.placement)
    after, told = _with_advice(after, watch, advice, conditions_of(after, site, seen))
    return after, _round(after, seen, answering, requests, measured, moves, told)


def _next_experts(watch: Watch, seen: Seen, now: float) -> State:
    """Return the state of the experts after the dumps of this round, as one window, if there are any."""
    counts = seen.dumps.counts
    if counts is None or not (counts > 0).any():
        return apply(Timer(now), watch.experts)
    return at_rest(apply(ExpertCounts(now, counts), watch.experts), now)[0]


def _restarts(watch: Watch, seen: Seen) -> list[Advice]:
    reason = "its counters have begun anew: the engine was started again, with whatever placement it was given"
    again = [url for url, pair in pairs_of(watch, seen).items() if restarted(*pair)]
    return [Advice("source", f"nothing, if {url} was to be started anew", reason) for url in again]


def _in_force(watch: Watch, seen: Seen) -> SlotMap:
    return watch.in_force if seen.dumps.slot_map is None else seen.dumps.slot_map


def _next_dumps(watch: Watch, dumps: Dumps) -> dict[str, frozenset[Mark]]:
    """Return which dumps are done with, and which are looked at again: one unreadable twice, unchanged, is given up."""
    broken = frozenset(dumps.broken)
    given_up = (broken & watch.dumps_doubtful) | (watch.dumps_broken & dumps.there)
    return {
        "dumps_done": (watch.dumps_done & dumps.there) | dumps.read | given_up,
        "dumps_doubtful": (broken - given_up) | dumps.awaiting,
        "dumps_broken": given_up,
    }


def _with_advice(
    after: Watch, before: Watch, advice: Sequence[Advice], conditions: Mapping[str, Condition]
) -> tuple[Watch, tuple[Advice, ...]]:
    """Return the watch that has given this advice, and that about conditions that begin or end."""
    told = before.conditions
    fresh = [*advice, *(each.advice for key, each in conditions.items() if key not in told)]
    over = [what for key, what in told.items() if key not in conditions]
    fresh += [Advice("over", f"nothing more: {what}", "it is no longer so") for what in over]
    at_s = after.time_s or 0.0
    numbered = tuple(replace(each, number=after.given + at, time_s=at_s) for at, each in enumerate(fresh, 1))
    kept = {key: each.what for key, each in conditions.items()}
    last = (*after.advice, *numbered)[-KEPT_ADVICE:]
    return replace(after, conditions=kept, advice=last, given=after.given + len(numbered)), numbered


def _round(
    after: Watch,
    seen: Seen,
    answering: Sequence[bool],
    requests: RequestMetrics | None,
    measured: float | None,
    moves: int,
    told: tuple[Advice, ...],
) -> Round:
    experts = after.experts
    windows = len(experts.forecast.history)
    unread = {url: each for url, each in seen.readings.items() if isinstance(each, str)}
    known = windows > 0 and after.in_force.shape == after.placement.shape
    return Round(
        time_s=seen.time_s,
        unread=unread | {mark.name: why for mark, why in seen.dumps.broken.items()},
        answering=sum(answering),
        demand_tokens_per_s=after.fleet.demands[-1] if requests is not None and after.fleet is not None else None,
        served_tokens_per_s=None if requests is None else requests.served_tokens_per_s,
        backlog_tokens=None if requests is None else requests.backlog_tokens,
        tpot_s=None if requests is None else requests.tpot_s,
        measured_balance=measured,
        windows=windows,
        dumps_read=len(seen.dumps.read),
        dumps_awaiting=len(seen.dumps.awaiting),
        moves=moves,
        expected_balance=_mean_balance(experts, after.placement) if windows else None,
        expected_balance_in_force=_mean_balance(experts, after.in_force) if known else None,
        advice=told,
    )


def _mean_balance(experts: State, slot_map: SlotMap) -> float:
    return float((1 / expected_peaks(experts, slot_map)).mean())
