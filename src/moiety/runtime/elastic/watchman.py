"""Watchman: who of a crew is lost, and when all meet anew, where nobody else decides it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moiety import health
from moiety.health import Blame, Signs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.runtime.elastic.events import Reason
    from moiety.runtime.elastic.hand import Hand
    from moiety.runtime.elastic.limits import Limits

_LEAST_STEPS = 8
"""Steps that a rank's pace is judged by."""


class Watchman:
    """Judges signs of life by the laws of `moiety.health`; remembers who could not reach whom."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._blames: list[Blame] = []
        self._due_s: float | None = None
        self.must_meet = True
        """Whether the ranks must meet anew even if they are the same."""

    def soon(self, at_s: float, *, must_meet: bool = True) -> None:
        """See to it that a generation is declared, now or a moment later."""
        self.must_meet = self.must_meet or must_meet
        self._due_s = at_s if self._due_s is None else min(self._due_s, at_s)

    def is_due(self, now_s: float) -> bool:
        """Return whether the next generation is to be declared."""
        return self._due_s is not None and now_s >= self._due_s

    def begun(self) -> None:
        """Take note that what was due is done."""
        self._due_s, self.must_meet = None, False

    def parted(self, blamer: Hand, blamed: Hand | None, generation: int, now_s: float) -> None:
        """Take note that one has lost another; where no cause shows, all meet anew as they are."""
        if blamed is not None:
            self._blames.append(Blame(now_s, generation, blamer.number, blamed.number))
        self.soon(now_s + self._limits.settle_s)

    def lost(self, hand: Hand, generation: int) -> None:
        """Take note of a loss: what was seen of it in its generation is nobody else's fault."""
        self._blames = [
            each for each in self._blames if each.epoch != generation and hand.number not in {each.blamer, each.blamed}
        ]

    def judge(
        self, here: Sequence[Hand], ranks: Sequence[Hand], generation: int, now_s: float
    ) -> list[tuple[Hand, Reason, str]]:
        """Return who is lost of the processes `here`, and why; where all wait for each other, they meet anew."""
        known = [each for each in here if each.heard_s is not None]
        signs = _signs(known, generation, now_s)
        found: list[tuple[Hand, Reason, str]] = [
            (known[index], "frozen", f"{known[index]} has been silent for {signs.silent_s[index]:.1f} s")
            for index in np.flatnonzero(health.silent(signs, self._limits)).tolist()
        ]
        alive = [each for each in ranks if not each.is_gone and all(each is not lost for lost, _, _ in found)]
        signs = _signs(alive, generation, now_s)
        stuck = [alive[index] for index in np.flatnonzero(health.hung(signs, self._limits)).tolist()]
        found.extend((each, "hung", _stuck_sentence(each)) for each in stuck)
        if self._due_s is None and health.is_deadlocked(signs, self._limits):
            for each in alive:
                sign = each.sign(generation)
                if sign is not None and sign.waits_for is not None:
                    self._blames.append(Blame(now_s, generation, each.number, ranks[sign.waits_for].number))
            self.soon(now_s)
        return found

    def cut_off(self, here: Sequence[Hand], now_s: float) -> tuple[Hand, Reason, str] | None:
        """Return whom others could not reach in several generations of late."""
        numbers = {each.number: each for each in here}
        self._blames = [each for each in self._blames if {each.blamer, each.blamed} <= numbers.keys()]
        number = health.cut_off(self._blames, self._limits, now_s)
        if number is None:
            return None
        return numbers[number], "cut off", f"{numbers[number]} cannot be reached by the others"

    def slow(self, ranks: Sequence[Hand]) -> dict[int, float]:
        """Return the ranks that have become slow, with their time a step over the median."""
        beats = [each.beat for each in ranks if each.beat is not None]
        if len(beats) < len(ranks) or any(each.step <= _LEAST_STEPS for each in beats):
            return {}
        own_s = np.array([each.busy_s / (each.step - 1) for each in beats])
        ratios = health.slowness(health.relative_times(own_s), self._limits.slow_ratio).tolist()
        news = {rank: ratio for rank, ratio in enumerate(ratios) if ratio > 1 and not ranks[rank].is_slow}
        for hand, ratio in zip(ranks, ratios, strict=True):
            hand.is_slow = ratio > 1
        return news


def _stuck_sentence(hand: Hand) -> str:
    """Return where a rank got stuck."""
    beat = hand.beat
    where = "the start" if beat is None else f"{beat.op} of layer {beat.layer}, step {beat.step}"
    return f"{hand} gets no further than {where} while others wait for it"


def _signs(hands: Sequence[Hand], generation: int, now_s: float) -> Signs:
    """Return the signs of processes that have been heard, in their order."""
    found = [(each, each.sign(generation)) for each in hands]
    return Signs(
        silent_s=np.array([now_s - (each.heard_s if each.heard_s is not None else now_s) for each, _ in found]),
        still_s=np.array([now_s - each.moved_s for each, _ in found]),
        waits=np.array([sign is not None and sign.waits for _, sign in found], dtype=np.bool_),
        loads=np.array([sign is None or sign.loads for _, sign in found], dtype=np.bool_),
    )
