"""Health: who of the ranks is lost, judged by the signs of life that they give."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moiety.runtime.elastic.limits import Limits

_LEAST_STEPS = 8
"""Steps that a rank's pace is judged by."""


@dataclass(frozen=True, slots=True)
class Sign:
    """What is known of a rank of the generation in force."""

    silent_s: float
    """Since it was heard of last."""
    stuck_s: float
    """Since it got anywhere, as far as is known."""
    loads: bool
    """Whether it has not stepped yet since it began to build its model: reading weights may take long."""
    waits: bool
    waits_for: int | None
    """The rank that it waits for, where that is known."""
    step: int
    busy_s: float
    """Of its steps so far, without waits."""


def frozen(signs: Mapping[int, Sign], limits: Limits) -> list[int]:
    """Return the ranks that show no sign of life: their processes are stopped, or starved."""
    return [rank for rank, sign in signs.items() if sign.silent_s > limits.silent_s]


def hung(signs: Mapping[int, Sign], limits: Limits) -> list[int]:
    """Return the ranks that live and get nowhere, though nobody keeps them waiting, while others wait."""
    if not any(sign.waits for sign in signs.values()):
        return []
    patience_s = {True: limits.load_s, False: limits.stuck_s}
    return [rank for rank, sign in signs.items() if not sign.waits and sign.stuck_s > patience_s[sign.loads]]


def is_deadlocked(signs: Mapping[int, Sign], limits: Limits) -> bool:
    """Return whether all ranks wait and none has got anywhere for too long: a link is cut, or a message lost."""
    return bool(signs) and all(sign.waits and sign.stuck_s > limits.deadlocked_s for sign in signs.values())


def most_blamed(blamed: Sequence[tuple[int, int]]) -> int | None:
    """Return the member that most others could not reach, given pairs of who blames whom; None where nobody is blamed.

    Of two that blame each other, the one that has been started last.
    """
    counts = Counter(each for _, each in dict.fromkeys(blamed))
    return max(counts, key=lambda each: (counts[each], each)) if counts else None


def slow(signs: Mapping[int, Sign], limits: Limits) -> dict[int, float]:
    """Return the ranks whose steps take too long beside the median, waits left out, with the ratio."""
    paces = {rank: sign.busy_s / (sign.step - 1) for rank, sign in signs.items() if sign.step > _LEAST_STEPS}
    if len(paces) < len(signs) or not paces:
        return {}
    usual = median(paces.values())
    return {rank: pace / usual for rank, pace in paces.items() if usual > 0 and pace > limits.slow_ratio * usual}
