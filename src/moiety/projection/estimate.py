"""A step's time in closed form: what the search ranks thousands of candidates by before it simulates the best."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.cost.price import OpPrice


def layer_times(prices: Sequence[OpPrice], *, overlapped: bool) -> tuple[float, float, float]:
    """Return (seconds, exposed communication, communication) that a layer adds to a step.

    One micro-batch alone: the ops in order, each on its stream (compute or links) as soon as its inputs and the stream
    allow. Two overlapping ones, counted as one unit: no less than their computation, than their transfers on the
    busiest tier, or than one of them alone.
    """
    alone, compute, moving = _in_order(prices)
    if not overlapped:
        return alone, max(alone - compute, 0.0), moving
    tiers: dict[int, float] = {}
    for price in prices:
        if price.transfer:
            for tier, seconds in enumerate(price.transfer.tier_seconds):
                tiers[tier] = tiers.get(tier, 0.0) + seconds
    both = max(2 * compute, 2 * max(tiers.values(), default=0.0), alone)
    return both, max(both - 2 * compute, 0.0), 2 * moving


def _in_order(prices: Sequence[OpPrice]) -> tuple[float, float, float]:
    """Return (finish, compute seconds, communication seconds) of one layer, computing and communicating in op order."""
    finish: dict[str, float] = {}
    free = {True: 0.0, False: 0.0}
    compute = moving = 0.0
    for price in prices:
        on_links = price.transfer is not None
        ready = max((finish.get(name, 0.0) for name in price.op.inputs), default=0.0)
        end = max(ready, free[on_links]) + price.seconds
        if price.op.prefetch:
            end = 0.0  # it ran beside the layer before
        free[on_links] = max(free[on_links], end)
        finish[price.op.name] = end
        if on_links:
            moving += price.seconds
        else:
            compute += price.seconds
    prefetched = sum(price.seconds for price in prices if price.op.prefetch)
    return max(max(finish.values(), default=0.0), prefetched), compute, moving
