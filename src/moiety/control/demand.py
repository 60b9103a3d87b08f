"""Demand: the tokens a second that nodes have to do, so that what waits becomes less and not more."""

from __future__ import annotations


def at_planned_pace(served: float, tpot_s: float | None, planned_tpot_s: float | None) -> float:
    """Return what is served, in tokens a second of nodes that take the plan's time per token.

    By Little's law `served` x `tpot_s` sequences are in flight, and those are what a node has room for. The sooner
    their tokens come, for the machine is faster than the plan takes it to be or hardly loaded, the more tokens as many
    sequences are: no reason for another node, on which they would come sooner still. Where tokens come later than
    planned, or when is not known, it is what is served.
    """
    if tpot_s is None or planned_tpot_s is None or tpot_s >= planned_tpot_s:
        return served
    return served * tpot_s / planned_tpot_s


def demand_tokens_per_s(served: float, backlog: float, *, before: float, since_s: float, drain_s: float) -> float:
    """Return the demand, in tokens a second.

    `served` is what was done a second; `backlog` what waits now, `before` what waited `since_s` seconds ago, in tokens.
    What has come is what was served and what the backlog has grown by: no token gets lost. Nodes that do just that
    leave the queue as long as it is, and by Little's law everyone waits queue / rate in it, for ever; so what waits is
    to be done as well, within `drain_s`. A backlog that has become smaller takes nothing off: it was served.
    """
    growth = max(backlog - before, 0.0) / since_s if since_s > 0 else 0.0
    return served + growth + backlog / drain_s
