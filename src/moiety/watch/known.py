"""What is known from one round to the next, what a look shows, and what a round came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moiety.control.scrape import Scrape
    from moiety.control.state import State
    from moiety.placement.problem import SlotMap
    from moiety.watch.advice import Advice
    from moiety.watch.dumps import Dumps, Mark


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What one look at the engines has shown."""

    time_s: float
    """Of the day, since 1970."""
    readings: Mapping[str, Scrape | str]
    """By address: counters, or why there are none."""
    dumps: Dumps


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """All that is known from one round to the next; files are made from it, and it can be made again from one."""

    experts: State
    fleet: State | None
    """None until an instance has answered."""
    in_force: SlotMap
    """What the engine holds as far as it is known, [MoE layers, slots]."""
    previous: SlotMap | None
    """What the placement file held before it changed last."""
    time_s: float | None = None
    """Of the last round, since 1970."""
    clock_s: float = 0.0
    """The clock of the decisions."""
    scrapes: Mapping[str, Scrape] = field(default_factory=dict[str, "Scrape"])
    """The last reading of each address."""
    dumps_done: frozenset[Mark] = frozenset()
    """Dumps that were read or given up and are still there."""
    dumps_doubtful: frozenset[Mark] = frozenset()
    """Dumps that could not be read in the last round, perhaps half-written, or to which ranks' files were missing."""
    dumps_broken: frozenset[Mark] = frozenset()
    """Those given up that are still there."""
    away: frozenset[int] = frozenset()
    """Drained instances that have been silent since."""
    conditions: Mapping[str, str] = field(default_factory=dict[str, str])
    """What holds for longer than a round and was told, by key."""
    advice: tuple[Advice, ...] = ()
    """The last pieces, the newest last."""
    given: int = 0
    """Pieces of advice so far."""

    @property
    def placement(self) -> SlotMap:
        """What the placement file holds, [MoE layers, slots]."""
        return self.experts.slot_map.reshape(len(self.experts.slot_map), -1)


@dataclass(frozen=True, slots=True)
class Round:
    """What a round came to."""

    time_s: float
    unread: dict[str, str]
    """Addresses and dumps that could not be read, and why."""
    answering: int
    """Instances that answered."""
    demand_tokens_per_s: float | None
    served_tokens_per_s: float | None
    backlog_tokens: float | None
    """That waiting requests will ask for."""
    tpot_s: float | None
    measured_balance: float | None
    """SGLang's own figure."""
    windows: int
    """Counts of experts known so far, at most those that the forecast keeps."""
    dumps_read: int
    """Files."""
    dumps_awaiting: int
    """Files of dumps to which other ranks' files are still to come."""
    moves: int
    """Slots of the placement file that changed in this round."""
    expected_balance: float | None
    """Of the placement file in the next window, mean of all layers; None before the first counts."""
    expected_balance_in_force: float | None
    """Of what the engine holds; None where that has other slots."""
    advice: tuple[Advice, ...]
