"""Laws of slowness where few ranks compute the same layers: beside their own past, when the machine's part is out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from moiety.control.apply import apply
from moiety.control.commands import AbortStep, Fence
from moiety.control.decide import settle
from moiety.control.events import Issued, StepTimes
from moiety.control.health import slowness
from moiety.control.policy import members_alone
from moiety.control.state import initial_state
from moiety.serve.looked_after import policy_of
from tests.control.deployments import beats

if TYPE_CHECKING:
    from moiety.control.commands import Command
    from moiety.control.state import State

WINDOW_S, DAY_S = 30.0, 86_400
_STEPS = 20
"""Of a window."""
STAGES = [(2,), (1, 1), (2, 2), (1, 1, 1), (4, 1)]
"""Ranks of each stage."""
POLICY = policy_of(window_s=60.0, balance=True)


class Telemetry:
    """What healthy ranks say: each stage has its own seconds, work comes and goes, and all of it scatters."""

    def __init__(self, stages: tuple[int, ...], seed: int = 1, scatter: float = 0.2) -> None:
        self._stage = np.repeat(np.arange(len(stages)), stages)
        self._rng, self._scatter = np.random.default_rng(seed), scatter
        self._laws = self._rng.uniform(0.001, 0.01, (len(stages), 4))[self._stage]
        self._machine = 1.0
        self.state = initial_state(members_alone(len(self._stage)), POLICY, np.zeros((0, len(self._stage)), np.int64))
        self.given: list[Command] = []

    def window(self, factors: float | list[float] = 1.0) -> State:
        """Tell of one window in which ranks are slower by these factors; return the state after it."""
        rng, ranks, now = self._rng, len(self._stage), self.state.time_s + WINDOW_S
        hour = now / 3600
        load = 8 * (1 - 0.8 * np.cos(hour * np.pi / 12))
        work = rng.poisson(_STEPS * load, (ranks, 3)) / _STEPS * [1, 40, 1]
        if rng.random() < 0.003:  # now and then the whole machine is busy with something else, for a while
            self._machine = rng.choice([1.0, 2.0, 5.0])
        own = (self._laws[:, 0] + (self._laws[:, 1:] * work * [1, 0.01, 0.5]).sum(axis=1)) * self._machine
        own *= np.exp(rng.normal(0.0, self._scatter, ranks)) * factors
        state = apply(StepTimes(now, self.state.epoch, own, own, work.astype(float), self._stage), self.state)
        self.state, commands = settle(beats(state, now), now)
        self.given += commands
        return self.state

    def fenced(self) -> list[int]:
        """Return the ranks that were fenced."""
        return [rank for each in self.given if isinstance(each, Fence) for rank in each.failed]


@pytest.mark.parametrize("stages", [(1, 1), (2, 2)])
def test_in_a_day_of_noisy_healthy_telemetry_nobody_is_evicted_or_slow(stages: tuple[int, ...]) -> None:
    telemetry = Telemetry(stages, seed=sum(stages))
    for _ in range(int(DAY_S / WINDOW_S)):
        assert (slowness(telemetry.window()) == 1).all()
    assert not telemetry.given


@pytest.mark.parametrize("stages", STAGES)
def test_a_rank_that_becomes_far_slower_is_fenced(stages: tuple[int, ...]) -> None:
    telemetry = Telemetry(stages)
    ranks = sum(stages)
    for _ in range(60):
        telemetry.window()
    for _ in range(12):
        if not telemetry.given:
            telemetry.window([1.0] * (ranks - 1) + [8.0])
    assert telemetry.fenced() == [ranks - 1]


@pytest.mark.parametrize("stages", STAGES)
def test_what_makes_all_slower_is_nobodys_own(stages: tuple[int, ...]) -> None:
    telemetry = Telemetry(stages)
    for window in range(200):
        state = telemetry.window(1.0 if window < 60 else 8.0)
        assert (slowness(state) == 1).all()


def test_nobody_gets_used_to_a_slow_rank_and_one_that_recovers_is_as_before() -> None:
    telemetry = Telemetry((1, 1), scatter=0.02)
    for window in range(300):
        state = telemetry.window([1.0, 2.6] if 60 <= window < 200 else 1.0)
        if window in {75, 199}:
            assert slowness(state)[0] == 1
            assert 1.5 < slowness(state)[1] < 2.7
    assert (slowness(state) == 1).all()
    assert not telemetry.fenced()


def test_of_one_rank_alone_and_of_one_that_was_never_faster_nothing_is_known() -> None:
    alone, never = Telemetry((1,)), Telemetry((1, 1))
    for window in range(200):
        assert (slowness(alone.window(1.0 if window < 60 else 8.0)) == 1).all()
        assert (slowness(never.window([1.0, 8.0])) == 1).all()


def test_a_new_epoch_has_no_past_as_layers_may_have_changed_hands() -> None:
    telemetry = Telemetry((1, 1))
    for _ in range(60):
        telemetry.window()
    state = telemetry.state
    telemetry.state = apply(Issued(state.time_s, AbortStep(state.epoch + 1, "a link is cut")), state)
    for _ in range(60):
        assert (slowness(telemetry.window([1.0, 8.0])) == 1).all()
