"""Declaration: what the launcher says of a generation: its number, its members, its plan."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moiety.plan import Plan  # pydantic reads it when the program runs
from moiety.records import Record

Number = Annotated[int, Field(ge=0)]


class Declaration(Record):
    """A generation, as its members are told of it."""

    generation: Annotated[int, Field(gt=0)]
    members: tuple[Number, ...]
    """Number of the process that is each rank, by rank."""
    plan: Plan
    """For as many ranks as there are members."""

    def rank_of(self, member: int) -> int | None:
        """Return the rank of a process; None where it is none."""
        return self.members.index(member) if member in self.members else None


class Order(Record):
    """One expert that moves to a slot, in a live migration."""

    layer: Number
    """Of the model."""
    slot: Number
    """Over the stage."""
    expert: Number
    source: Number
    """A slot that holds it."""


class Batch(Record):
    """Moves that all ranks make and then switch to at once."""

    generation: Annotated[int, Field(gt=0)]
    number: Annotated[int, Field(gt=0)]
    """Among the batches of the generation."""
    moves: tuple[Order, ...] = Field(min_length=1)
