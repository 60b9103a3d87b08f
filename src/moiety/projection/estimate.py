"""A step's time in closed form: what the search ranks thousands of candidates by before it simulates the best."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.graph.op import Collective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.cost.price import OpPrice


def layer_times(passes: Sequence[Sequence[OpPrice]], *, overlapped: bool) -> tuple[float, float, float]:
    """Return (seconds, exposed communication, communication) that the passes through a layer add to a step.

    One micro-batch alone: the ops in order, each on its stream (compute or links) as soon as its inputs and the stream
    allow, and no less than the transfers on the busiest tier, those in the background included. Two overlapping ones,
    counted as one unit: no less than their computation, than their transfers, or than one of them alone.
    """
    alone = compute = moving = 0.0
    for prices in passes:
        finish, computing, sending = _in_order(prices)
        alone, compute, moving = alone + finish, compute + computing, moving + sending
    busiest = max(link_seconds(passes), default=0.0)
    if not overlapped:
        whole = max(alone, busiest)
        return whole, max(whole - compute, 0.0), moving
    both = max(2 * compute, 2 * busiest, alone)
    return both, max(both - 2 * compute, 0.0), 2 * moving


def link_seconds(passes: Sequence[Sequence[OpPrice]]) -> tuple[float, ...]:
    """Return for how long the passes keep each tier of links busy."""
    tiers: list[float] = []
    for prices in passes:
        for price in prices:
            if price.transfer:
                tiers += [0.0] * (len(price.transfer.tier_seconds) - len(tiers))
                for tier, seconds in enumerate(price.transfer.tier_seconds):
                    tiers[tier] += seconds
    return tuple(tiers)


def _in_order(prices: Sequence[OpPrice]) -> tuple[float, float, float]:
    """Return (finish, compute seconds, communication seconds) of one layer, computing and communicating in op order.

    Bulk transfers run beside the layers before and after it.
    """
    finish: dict[str, float] = {}
    free = {True: 0.0, False: 0.0}
    compute = moving = 0.0
    for price in prices:
        on_links = price.transfer is not None
        if on_links:
            moving += price.seconds
        else:
            compute += price.seconds
        if isinstance(price.op.work, Collective) and price.op.work.bulk:
            continue
        ready = max((finish.get(name, 0.0) for name in price.op.inputs), default=0.0)
        finish[price.op.name] = free[on_links] = max(ready, free[on_links]) + price.seconds
    return max(finish.values(), default=0.0), compute, moving
