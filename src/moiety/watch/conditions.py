"""Conditions: what holds for longer than a round; told when it begins, and again when it is over."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from moiety.control.scrape import Scrape
from moiety.watch.advice import Advice

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from moiety.control.state import State
    from moiety.watch.advice import Figure
    from moiety.watch.known import Seen, Watch
    from moiety.watch.site import Site

_OVER = 0.95
"""Of a bound: below that, what went beyond it is over."""


class Condition(NamedTuple):
    """Something that holds, in a few words, and what to do about it."""

    what: str
    advice: Advice


def conditions_of(watch: Watch, site: Site, seen: Seen) -> dict[str, Condition]:
    """Return what holds after a round, by key."""
    found = dict(_unread(watch, seen))
    found |= dict(_uncounted(site, seen))
    held = watch.in_force.shape[1]
    slots = watch.placement.shape[1]
    if held != slots:
        reason = f"its dumps show {held} slots a layer, the plan has {slots}: its balance cannot be compared"
        found["slots"] = Condition("other slots than planned", Advice("re-plan", "plan the engine's own slots", reason))
    if watch.fleet is not None:
        found |= dict(_beyond(watch.fleet, site, watch.conditions))
    return found


def _unread(watch: Watch, seen: Seen) -> Iterator[tuple[str, Condition]]:
    for url, reading in seen.readings.items():
        if isinstance(reading, str):
            yield f"endpoint {url}", Condition(f"{url} could not be read", Advice("source", f"look at {url}", reading))
    for mark in sorted(watch.dumps_broken):
        reason = seen.dumps.broken.get(mark, "cannot be read")
        advice = Advice("source", f"look at {mark.name}, or remove it", reason)
        yield f"dump {mark.name}", Condition(f"{mark.name} could not be read", advice)


def _uncounted(site: Site, seen: Seen) -> Iterator[tuple[str, Condition]]:
    for url, reading in seen.readings.items():
        if isinstance(reading, Scrape) and not any(name in site.counted for name, _ in reading.counters):
            reason = f"it shows no number for {' or '.join(site.counted)}, so its demand is not seen"
            yield f"counters {url}", Condition(f"{url} counts no tokens", Advice("source", f"look at {url}", reason))


def _beyond(fleet: State, site: Site, told: Collection[str]) -> Iterator[tuple[str, Condition]]:
    """Give what no instance that is known, and no clock, can mend."""
    deployment = fleet.deployment
    rate = deployment.tokens_per_s_per_node
    if rate is not None and fleet.demands:
        needed = fleet.demands[-1] / (rate * site.policy.scale_up_at)
        if needed > len(site.instances) * (_OVER if "capacity" in told else 1.0):
            figures: dict[str, Figure] = {
                "demand_tokens_per_s": round(fleet.demands[-1], 3),
                "backlog_tokens": round(fleet.backlog_tokens, 3),
                "tokens_per_s_per_instance": round(rate, 3),
                "instances_needed": math.ceil(needed),
                "instances_known": len(site.instances),
            }
            reason = "the demand is beyond what all named instances can do"
            do = "plan for more GPUs, or name more instances with --endpoint"
            yield "capacity", Condition(reason, Advice("re-plan", do, reason, figures))
    limit_s, tpot_s = deployment.tpot_limit_s, fleet.tpot_s
    if tpot_s is not None and limit_s is not None and tpot_s > limit_s * (_OVER if "slow" in told else 1.0):
        reason = "the time per output token is beyond the plan's objective"
        do = "plan anew for the load as it is, or with fewer requests in flight"
        yield "slow", Condition(reason, Advice("re-plan", do, reason, {"tpot_s": round(tpot_s, 6), "limit_s": limit_s}))
