"""Orders and answers: what the server tells its ranks each step, and what they say; JSON lines both ways."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moiety.records import Record

Count = Annotated[int, Field(ge=0)]


class Row(Record):
    """Consecutive tokens of one sequence that a step computes, and how the next one is drawn."""

    slot: Count
    """Row of the attention group's KV cache."""
    start: Count
    """Tokens of the sequence that are in the cache already."""
    token_ids: tuple[Count, ...]
    emits: bool
    """Whether the last of these tokens asks for the next one."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Count = 0
    seed: int = 0
    number: Count = 0
    """Which of the sequences that share a seed it is."""


class StepOrder(Record):
    """One step of all ranks; every rank gets the same."""

    number: Count
    groups: tuple[tuple[Row, ...], ...]
    """By attention group."""
    asks_counts: bool = False
    """Whether the answers bring what the experts were asked for since they did last."""

    @property
    def busiest(self) -> int:
        """The most tokens that an attention group has."""
        return max(sum(len(row.token_ids) for row in rows) for rows in self.groups)


class OwnWork(Record):
    """What a rank did of a step by itself."""

    own_s: Annotated[float, Field(ge=0)]
    """Seconds, without waits for other ranks."""
    alike_s: Annotated[float, Field(ge=0)]
    """Those of them that experts and exchanges have no part in, so that the rows of the group account for them."""
    exposed_s: Annotated[float, Field(ge=0)]
    """Seconds of the step in which it did nothing but wait for transfers: exposed communication."""
    amounts: tuple[Count, ...]
    """Of the group's rows: tokens, positions that they attend to, tokens that ask for the next one."""


class StepAnswer(Record):
    """What one rank has to say of a step that it has done."""

    number: Count
    tokens: tuple[Count | None, ...]
    """The tokens that the rows of its attention group emitted, in their order; None where logits were not finite."""
    counts: tuple[tuple[Count, ...], ...] = ()
    """[layers with experts][experts]: how often the group's tokens chose each; from one rank of each group."""
    work: OwnWork | None = None
    """None where seconds on this processor say nothing of the rank's: on GPUs."""
