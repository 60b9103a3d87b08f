"""Demand: the tokens a second that nodes have to do, so that what waits becomes less and not more."""

from __future__ import annotations


def demand_tokens_per_s(served: float, backlog: float, *, before: float, since_s: float, drain_s: float) -> float:
    """Return the demand, in tokens a second.

    `served` is what was done a second; `backlog` what waits now, `before` what waited `since_s` seconds ago, in tokens.
    What has come is what was served and what the backlog has grown by: no token gets lost. Nodes that do just that
    leave the queue as long as it is, and by Little's law everyone waits queue / rate in it, for ever; so what waits is
    to be done as well, within `drain_s`. A backlog that has become smaller takes nothing off: it was served.
    """
    growth = max(backlog - before, 0.0) / since_s if since_s > 0 else 0.0
    return served + growth + backlog / drain_s
