"""Events: what the control plane is told, in the order in which it hears it. `time_s` is the controller's clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from moiety.control.commands import Command
    from moiety.placement.problem import Loads, SlotMap


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A rank is there."""

    time_s: float
    rank: int
    epoch: int
    """That the rank works under."""
    progress: int
    """Of all that it has got done, such as ops and collectives: it grows while the rank gets anywhere."""
    waiting: bool
    """Whether it waits for others, inside a collective."""
    loading: bool = False
    """Whether it still reads weights."""
    waits_for: int | None = None
    """The rank that it waits for, where that is known."""


@dataclass(frozen=True, slots=True, eq=False)
class StepTimes:
    """What the ranks took for the same steps, each by itself, without waiting for others; seconds of one, [ranks]."""

    time_s: float
    epoch: int
    """That they worked under."""
    own_s: Loads
    """NaN for ranks that took no part."""
    alike_s: Loads
    """Of it, what `work` accounts for: without experts, whose work is what tokens of all ranks make it."""
    work: Loads
    """How much of each kind each had to do, [ranks, kinds]."""
    stage: SlotMap | None = None
    """Number of the layers that each computes, [ranks]: only ranks of the same ones are compared. None: all are."""


@dataclass(frozen=True, slots=True)
class Parted:
    """A rank could not reach another, or has lost its connection to it."""

    time_s: float
    rank: int
    epoch: int
    """That the rank works under."""
    peer: int


@dataclass(frozen=True, slots=True)
class Exited:
    """A rank's process has ended, as its parent saw."""

    time_s: float
    rank: int
    reason: str = "exited"


@dataclass(frozen=True, slots=True)
class Joined:
    """A rank has started anew, empty, and asks to be taken in."""

    time_s: float
    rank: int


@dataclass(frozen=True, slots=True, eq=False)
class ExpertCounts:
    """Tokens of each expert in the window that ends now, [layers, experts]."""

    time_s: float
    counts: Loads


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One GPU's state; None where it cannot be read."""

    time_s: float
    rank: int
    temperature_c: float | None = None
    throttled: bool = False
    power_w: float | None = None


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """What users saw since the last report."""

    time_s: float
    served_tokens_per_s: float
    """Or asked for, where all that is asked for is known."""
    tpot_s: float | None = None
    backlog_tokens: float | None = 0.0
    """Tokens that requests which wait for room will ask for; None where that is not known."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A move is done: the slot holds the expert and serves."""

    time_s: float
    epoch: int
    layer: int
    rank: int
    slot: int
    expert: int


@dataclass(frozen=True, slots=True)
class Unfit:
    """Moves that were asked for do not fit what the ranks hold, so that none of them was made."""

    time_s: float
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Issued:
    """A command was given out; with these in the journal the state can be rebuilt."""

    time_s: float
    command: Command


@dataclass(frozen=True, slots=True)
class Timer:
    """Time has passed."""

    time_s: float


Event: TypeAlias = (
    Heartbeat
    | StepTimes
    | Parted
    | Exited
    | Joined
    | ExpertCounts
    | DeviceReading
    | RequestMetrics
    | Moved
    | Unfit
    | Issued
    | Timer
)
