"""The queue of requests that wait for their prompts to be computed."""

from __future__ import annotations

_IDLE = 1e-12
"""Share of the time that even a queue without end leaves a server idle, so that nothing is divided by 0."""


def queue_wait_s(load: float, service_s: float) -> float:
    """Return the mean wait before a server that is busy for a share `load` of the time: M/D/1, r s / (2 (1 - r))."""
    return load / (2 * max(1 - load, _IDLE)) * service_s
