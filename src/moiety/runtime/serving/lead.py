"""Lead: who decides for a crew that serves: whom it fences, who meets next, where experts go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.placement.problem import SlotMap
    from moiety.runtime.elastic.crew import Crew
    from moiety.runtime.elastic.events import Event


class Lead(Protocol):
    """What `Ranks` asks of whoever leads its crews.

    The thread that polls the crew calls `begin`, `turn` and `slot_map_with`.
    """

    @property
    def epoch(self) -> int:
        """Number of the membership in force."""
        ...

    @property
    def refusal(self) -> str | None:
        """Why nothing can be served for now; None where all can be."""
        ...

    def asks_counts(self) -> bool:
        """Return whether the next step shall bring what the experts were asked for; the event loop asks."""
        ...

    def own_step_s(self, home: int) -> float | None:
        """Return the seconds of a step that the rank of a home works by itself, as far as known; any thread asks."""
        ...

    def begin(self) -> int:
        """Hear of a new crew; return the number of its first generation."""
        ...

    def turn(self, crew: Crew, events: Sequence[Event]) -> None:
        """Hear what has happened, decide, and have the crew do it; raise CoverageLostError where it cannot go on."""
        ...

    def slot_map_with(self, home: int) -> SlotMap | None:
        """Return where experts would be with a rank that is to come back; None where that is not known yet."""
        ...
