"""The queue of requests that wait for their prompts to be computed."""

from __future__ import annotations

import math

_IDLE = 1e-9
"""Share of the time that even a queue without end leaves a server idle, so that nothing is divided by 0."""


def queue_wait_s(load: float, service_s: float) -> float:
    """Return the mean wait before a server that is busy for a share `load` of the time: M/D/1, r s / (2 (1 - r))."""
    return load / (2 * max(1 - load, _IDLE)) * service_s


def closed_loop_load(demand_s: float, other_s: float, service_s: float) -> float:
    """Return the share of the time that a server is busy when a fixed number of requests is always in flight.

    `demand_s` is the time that serving each of those requests once takes the server, `other_s` what a request spends
    in all but the queue. By Little's law load x (other + wait(load)) = demand, with the M/D/1 wait; that is a quadratic
    in the load with one root between 0 and 1.
    """
    a, b, c = service_s - 2 * other_s, 2 * (other_s + demand_s), -2 * demand_s
    # the stable form of the smaller root: b is positive, a may be 0
    return -2 * c / (b + math.sqrt(b * b - 4 * a * c))
