"""Pace: what the ranks of a generation take for the same steps, each by itself, summed over windows of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moiety.control.events import StepTimes
from moiety.runtime.seat import seat_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.plan import Plan
    from moiety.runtime.serving.order import OwnWork
    from moiety.serve.looked_after import LookedAfter

_LEAST_S = 0.5
"""Of a window: far longer than the turns in which processes share a processor."""


class Pace:
    """Takes in what ranks say of their steps; every rank says it of each, and no step begins before all have."""

    def __init__(self, num_ranks: int, began_s: float) -> None:
        self._num_ranks, self._began_s = num_ranks, began_s
        self._num_steps = 0
        self._said: list[list[float]] = [[] for _ in range(num_ranks)]
        """Of each rank, over the window: seconds, seconds that its work accounts for, amounts of work."""
        self._heard: set[int] = set()
        """Ranks that have said it of the step under way."""

    def take(self, rank: int, work: OwnWork, now_s: float) -> list[list[float]] | None:
        """Take in one rank's part of a step; return the means of a step, [ranks][figures], where a window ends."""
        figures = [work.own_s, work.alike_s, *map(float, work.amounts)]
        before = self._said[rank] or [0.0] * len(figures)
        self._said[rank] = [one + other for one, other in zip(before, figures, strict=True)]
        self._heard.add(rank)
        if len(self._heard) < self._num_ranks:
            return None
        self._heard.clear()
        self._num_steps += 1
        if now_s - self._began_s < _LEAST_S:
            return None
        means = [[each / self._num_steps for each in row] for row in self._said]
        self._said = [[] for _ in range(self._num_ranks)]
        self._began_s, self._num_steps = now_s, 0
        return means


def step_times(
    means: Sequence[Sequence[float]], of: LookedAfter, homes: Sequence[int], plan: Plan, epoch: int, now_s: float
) -> StepTimes:
    """Return a window's means in the words of the control plane; `homes` are those of the plan's ranks, in order.

    Of processes that are one rank the slowest counts. Ranks of a pipeline's stages do not compute the same layers:
    their stage is said too.
    """
    said = np.array(means)
    own_s, alike_s = (np.full(of.deployment.num_ranks, np.nan) for _ in range(2))
    work = np.zeros((of.deployment.num_ranks, said.shape[1] - 2))
    stage = np.zeros(of.deployment.num_ranks, dtype=np.int64)
    for number, (home, (own, alike, *amounts)) in enumerate(zip(homes, said.tolist(), strict=True)):
        rank = of.rank_of(home)
        stage[rank] = seat_of(plan, number).coordinates["pp"]
        own_s[rank], alike_s[rank] = np.fmax(own_s[rank], own), np.fmax(alike_s[rank], alike)
        work[rank] = amounts
    return StepTimes(now_s, epoch, own_s, alike_s, work, stage if plan.pools[0].strategy.pp > 1 else None)
