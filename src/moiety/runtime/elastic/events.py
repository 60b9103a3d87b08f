"""Events: what a crew tells its driver, in the order in which it happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from moiety.plan import Plan

Reason = Literal["dead", "frozen", "hung", "cut off", "fenced"]
"""Why a rank is lost: its process is gone; it shows no sign of life; it lives, but gets nowhere while others wait for
it; others cannot reach it; who leads the crew says so."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A rank is lost. Its process is gone or fenced: killed, and whatever it may still say is refused."""

    generation: int
    rank: int | None
    """In that generation; None of a process that was no rank of it."""
    home: int
    """Its rank in the whole plan."""
    member: int
    """Number of the process: every process that a crew has started has its own."""
    pid: int
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Declared:
    """A generation is declared; what was sent in the one before and is not answered will not be answered."""

    generation: int
    plan: Plan


@dataclass(frozen=True, slots=True)
class Ready:
    """Every rank of the generation has its weights and its groups, and takes what is sent."""

    generation: int
    plan: Plan
    seconds: float
    """Since the generation before ended: since the launcher knew of the loss, or of the join."""
    members: tuple[int, ...]
    """Number of the process that is each rank."""
    kept: tuple[bool, ...]
    """By rank: whether it has its KV cache as it was in the generation that it was in before."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a rank of the generation in force has said to the driver."""

    generation: int
    rank: int
    payload: object


@dataclass(frozen=True, slots=True)
class Slow:
    """A rank computes its steps slower than the others; it is not removed for that."""

    generation: int
    rank: int
    ratio: float
    """Its time a step, without waits, over the median of all."""


@dataclass(frozen=True, slots=True)
class Parted:
    """A rank could not reach another, or has lost its connection to it; both may live."""

    generation: int
    rank: int
    peer: int | None
    """None where it does not know whom."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A process has read the weights that it needs, and can be a rank of the next generation."""

    home: int
    member: int
    pid: int


@dataclass(frozen=True, slots=True)
class Switched:
    """All ranks have switched to the next map of a migration, at the boundary of one step."""

    generation: int
    plan: Plan
    """With the map in force."""
    left: int
    """Moves of the migration that are still to be made."""


Event = Lost | Declared | Ready | Said | Slow | Parted | Joined | Switched
