"""The rule about power: the clock, or the cap, at which least is drawn for steps that are hardly longer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.control.commands import CapPower, LockClock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.control.commands import Command
    from moiety.control.policy import ClockPoint, Phase
    from moiety.control.state import State

_ROOM = 0.95
"""Of the limit on the time per token: what a lower clock must leave, so that it is not taken back at once."""
CLOCKED: frozenset[Phase] = frozenset({"decode", "mixed"})
"""Phases whose clock is locked; the others run into a power cap."""


def choose_limit(state: State, now: float) -> tuple[Command, ...]:  # noqa: ARG001 - every rule takes the time
    """Lock the clock of decoding, cap the power of prefill and training, as low as the objective lets."""
    deployment = state.deployment
    points = deployment.clock_points
    if not points:
        return ()
    clocked = deployment.phase in CLOCKED
    best = best_point(
        points,
        state.policy.most_slowdown,
        current=_current(state, points),
        tpot_s=state.tpot_s,
        tpot_limit_s=deployment.tpot_limit_s,
    )
    limit = best.clock_hz if clocked else best.power_w
    if limit == state.limit or (state.limit is None and best is points[0]):
        return ()
    return (limit_command(best, deployment.phase, tuple(np.flatnonzero(state.ranks.members).tolist())),)


def limit_command(point: ClockPoint, phase: Phase, ranks: tuple[int, ...]) -> LockClock | CapPower:
    """Return the command that has ranks work at a point: locked clocks for decoding, caps for what runs into them."""
    return LockClock(ranks, point.clock_hz) if phase in CLOCKED else CapPower(ranks, point.power_w)


@dataclass(frozen=True, slots=True)
class LimitChoice:
    """What a phase is to run at, and what that is worth by the planner's figures."""

    phase: Phase
    highest: ClockPoint
    point: ClockPoint
    reason: str

    @property
    def lowers(self) -> bool:
        """Whether there is anything to set."""
        return self.point.clock_hz < self.highest.clock_hz

    @property
    def saved_share(self) -> float:
        """Of the power at the highest clock."""
        return 1 - self.point.power_w / self.highest.power_w

    @property
    def longer_share(self) -> float:
        """Of the step at the highest clock."""
        return self.point.step_s / self.highest.step_s - 1

    @property
    def energy_saved_share(self) -> float:
        """Of the joules of a step, and so of a token."""
        return 1 - (1 - self.saved_share) * (1 + self.longer_share)


def limit_choice(
    points: Sequence[ClockPoint],
    phase: Phase,
    most_slowdown: float,
    *,
    latency_s: float | None = None,
    latency_limit_s: float | None = None,
) -> LimitChoice:
    """Return the choice of a phase that nobody has measured yet, and why it is that.

    `latency_s` is what the objective limits, at the highest clock; it is taken to grow with the step.
    """
    best = best_point(points, most_slowdown, current=points[0], tpot_s=latency_s, tpot_limit_s=latency_limit_s)
    bound = f"a step at most {most_slowdown:.1%} longer"
    if latency_s is not None and latency_limit_s is not None:
        bound += f" and {_ROOM:.0%} of the objective's latency"
    allowed = [point for point in points if point.step_s <= (1 + most_slowdown) * points[0].step_s]
    if best is not points[0]:
        reason = f"draws least of the clocks with {bound}"
    elif len(allowed) > 1 and min(point.power_w for point in allowed) == points[0].power_w:
        reason = f"draws as much, the device's limit, at every clock with {bound}"
    else:
        reason = f"no lower clock has {bound}"
    return LimitChoice(phase, points[0], best, reason)


def best_point(
    points: Sequence[ClockPoint],
    most_slowdown: float,
    *,
    current: ClockPoint,
    tpot_s: float | None = None,
    tpot_limit_s: float | None = None,
) -> ClockPoint:
    """Return the point that draws least, among those whose step is at most so much longer than at the highest clock.

    Where the time per token under the `current` point is measured and limited, it must stay within; the highest clock
    is the way out when none does.
    """
    allowed = [points[0]]
    for point in points[1:]:
        expected = None if tpot_s is None else tpot_s * point.step_s / current.step_s
        room = _ROOM if point.clock_hz < current.clock_hz else 1.0
        within = expected is None or tpot_limit_s is None or expected <= room * tpot_limit_s
        if within and point.step_s <= (1 + most_slowdown) * points[0].step_s:
            allowed.append(point)
    return min(allowed, key=lambda point: (point.power_w, -point.clock_hz))


def _current(state: State, points: Sequence[ClockPoint]) -> ClockPoint:
    """Return the point that is set, the highest where none is."""
    found = [point for point in points if state.limit in (point.clock_hz, point.power_w)]
    return found[0] if found else points[0]
