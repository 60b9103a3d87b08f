"""Commands: what the control plane wants done. Each may be carried out twice with the effect of once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

Occasion = Literal["recovery", "members", "heat", "balance"]
"""Why experts move: some are on no rank; ranks have gone or come; a GPU is hot or slow; loads have drifted."""


class Move(NamedTuple):
    """One slot of a rank that gets an expert."""

    layer: int
    """Row of the slot map."""
    rank: int
    slot: int
    """Of the rank."""
    expert: int
    source: int | None
    """Rank that holds a copy when the move's step begins; None: the checkpoint."""
    step: int = 0
    """Moves of one step read all their sources before any of them writes."""


@dataclass(frozen=True, slots=True)
class StandBack:
    """Do nothing and let nothing out: this side of a partition is not the one that may act."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fence:
    """Go on without these ranks under a new epoch; whatever carries an older one is refused from now on."""

    epoch: int
    ranks: tuple[int, ...]
    reason: str
    failed: tuple[int, ...]
    """Those of the ranks that have failed; the others stop because they share a group with one."""


@dataclass(frozen=True, slots=True)
class AbortStep:
    """Give up the collectives of the epoch before, which cannot end though nobody has failed, and repeat the step."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Admit:
    """Take these ranks back, empty, under a new epoch."""

    epoch: int
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MoveExperts:
    """Copy or reload experts; each move is reported by itself, and the map changes with the reports."""

    epoch: int
    num_slots: int
    """Slots of a layer on each rank afterwards: more than before where experts would not fit otherwise, and fewer where
    they do again; what lies in the last ones is given up when all moves are done."""
    moves: tuple[Move, ...]
    """By step; one without a move says that none pays."""
    reason: Occasion


@dataclass(frozen=True, slots=True)
class Refuse:
    """Take no requests: these experts, as (layer, expert), are on no rank and cannot be brought back."""

    epoch: int
    experts: tuple[tuple[int, int], ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Take requests again: every expert has a slot."""

    epoch: int


@dataclass(frozen=True, slots=True)
class ScaleUp:
    """Start the ranks of these nodes; they report when they are there."""

    num_nodes: int
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """Have these ranks give their experts away under a new epoch, so that they can go.

    They get no new requests and finish those that they have.
    """

    epoch: int
    num_nodes: int
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Park:
    """Go on without drained ranks under a new epoch; their nodes are free."""

    epoch: int
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LockClock:
    """Run these ranks' SMs at this clock: decode waits for memory, and no power cap is low enough to say so."""

    ranks: tuple[int, ...]
    clock_hz: float

    @property
    def limit(self) -> tuple[Literal["clock"], float]:
        """What is limited, and to how many Hz."""
        return "clock", self.clock_hz


@dataclass(frozen=True, slots=True)
class CapPower:
    """Let these ranks draw no more than this: prefill and training run into the cap and clock themselves down."""

    ranks: tuple[int, ...]
    power_w: float

    @property
    def limit(self) -> tuple[Literal["power"], float]:
        """What is limited, and to how many watts."""
        return "power", self.power_w


Command: TypeAlias = (
    StandBack
    | Fence
    | AbortStep
    | Admit
    | MoveExperts
    | Refuse
    | Resume
    | ScaleUp
    | Drain
    | Park
    | LockClock
    | CapPower
)
