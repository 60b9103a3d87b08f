"""The scheduler: which sequences are in flight, where, and what each step computes of them. It knows no clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from moiety.runtime.serving.order import Row, StepOrder

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from moiety.serve.journal import Entry


_NOT_FINITE = "the logits of the next token are not finite: values went beyond the number format of the activations"


class QueueFullError(Exception):
    """More sequences would wait than may."""


@dataclass(slots=True, eq=False)
class Seated:
    """A sequence in flight: its row of the cache, and how much of it is there."""

    entry: Entry
    slot: int
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """A step's order, and whose rows they are."""

    order: StepOrder
    rows: tuple[tuple[tuple[Seated, Row], ...], ...]
    """By attention group."""


@dataclass(slots=True)
class Group:
    """The sequences of an attention group, and its free rows of the cache."""

    free: list[int]
    seated: list[Seated] = field(default_factory=list[Seated])


class Scheduler:
    """Sequences join and leave between steps.

    Every step gives each sequence that has its prompt behind it one token; up to `prefill_chunk` tokens of prompts
    come beside them, in the order of arrival. Who waits is seated, first come first served, where most rows are free.
    A sequence that is suspected of ending ranks is computed alone until it has its next token.
    """

    def __init__(self, *, num_slots: int, prefill_chunk: int, max_waiting: int) -> None:
        self._num_slots, self._chunk, self._max_waiting = num_slots, prefill_chunk, max_waiting
        self._waiting: deque[Entry] = deque()
        self._groups: list[Group] = []
        self._num_steps = 0
        self._step: Step | None = None
        """The one that is under way."""

    @property
    def num_waiting(self) -> int:
        """Sequences without a row of the cache."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences with one."""
        return sum(len(group.seated) for group in self._groups)

    @property
    def cache_usage(self) -> float:
        """Share of the cache's rows that are taken."""
        rows = self._num_slots * len(self._groups)
        return self.num_running / rows if rows else 0.0

    def without_room(self) -> list[Entry]:
        """Return the sequences that wait and will not have a row of the cache in the next step."""
        return list(islice(self._waiting, sum(len(group.free) for group in self._groups), None))

    def begin(self, groups: Sequence[int | None]) -> None:
        """Go on with the attention groups of the next ranks.

        For each the number that it had before is given, where its caches are what they were: its sequences stay, and
        what the step that was given up had of them is computed again. None: its caches are empty. Who was in flight
        elsewhere comes first, in the order of arrival.
        """
        before, self._groups = self._groups, [Group(list(range(self._num_slots))) for _ in groups]
        for number, old in enumerate(groups):
            if old is not None:
                self._groups[number] = before[old]
        gone = [group for number, group in enumerate(before) if number not in groups]
        again = sorted((each.entry for group in gone for each in group.seated), key=lambda each: each.number)
        self._waiting.extendleft(reversed(again))
        for seated, row in self._under_way():
            if row.start and len(row.token_ids) > 1:
                seated.cached = 0  # layers with a window may have lost what the first of the tokens see
        self._step = None

    def suspects(self) -> list[Entry]:
        """Return the sequences of the step that is under way."""
        return [seated.entry for seated, _ in self._under_way()]

    def _under_way(self) -> list[tuple[Seated, Row]]:
        return [] if self._step is None else [each for rows in self._step.rows for each in rows]

    def admit(self, entries: Collection[Entry]) -> None:
        """Take in sequences, all or none; raise QueueFullError where too many would wait."""
        room = sum(len(group.free) for group in self._groups) + self._max_waiting
        if len(self._waiting) + len(entries) > room:
            raise QueueFullError
        self._waiting.extend(entries)

    def withdraw(self, entry: Entry) -> None:
        """Forget a sequence; its row is free for the next step."""
        if entry in self._waiting:
            self._waiting.remove(entry)
        self._unseat(entry)

    def clear(self) -> list[Entry]:
        """Forget and return all sequences."""
        found = [*(each.entry for group in self._groups for each in group.seated), *self._waiting]
        self._waiting.clear()
        self._groups = []
        return found

    def next_step(self) -> Step | None:
        """Return what is to be computed next; None where nobody is in flight."""
        self._seat()
        alone = min((each for each in self._seated() if each.entry.is_suspect), key=_arrival, default=None)
        rows = tuple(self._rows(group, alone) for group in self._groups)
        if not any(rows):
            return None
        self._num_steps += 1
        order = StepOrder(number=self._num_steps, groups=tuple(tuple(row for _, row in each) for each in rows))
        self._step = Step(order, rows)
        return self._step

    def _seated(self) -> list[Seated]:
        return [each for group in self._groups for each in group.seated]

    def accept(self, step: Step, tokens: Sequence[Sequence[int | None]], now_s: float) -> list[Entry]:
        """Take the tokens that a step has given, by attention group; return the sequences whose turn it was.

        Each has its token now, or has failed where it was given None.
        """
        found: list[Entry] = []
        self._step = None
        for group, rows, emitted in zip(self._groups, step.rows, tokens, strict=True):
            given = iter(emitted)
            for seated, row in rows:
                token = next(given) if row.emits else None
                if seated not in group.seated:  # withdrawn meanwhile
                    continue
                seated.cached = row.start + len(row.token_ids)
                if row.emits:
                    if token is None:
                        seated.entry.fail(_NOT_FINITE)
                    else:
                        seated.entry.accept(token, now_s)
                    found.append(seated.entry)
                if seated.entry.is_over:
                    self._unseat(seated.entry)
        return found

    def _seat(self) -> None:
        while self._waiting:
            group = max(self._groups, key=lambda each: len(each.free), default=None)
            if group is None or not group.free:
                return
            group.free.sort(reverse=True)
            group.seated.append(Seated(self._waiting.popleft(), group.free.pop()))

    def _unseat(self, entry: Entry) -> None:
        for group in self._groups:
            for seated in [each for each in group.seated if each.entry is entry]:
                group.seated.remove(seated)
                group.free.append(seated.slot)

    def _rows(self, group: Group, alone: Seated | None) -> tuple[tuple[Seated, Row], ...]:
        """Return the rows of one group's step, by slot; of all groups' none but those of who must be `alone`."""
        room = self._chunk
        found: list[tuple[Seated, Row]] = []
        for seated in group.seated if alone is None else [each for each in group.seated if each is alone]:
            missing = seated.entry.num_known - seated.cached
            if missing > 1:
                missing = min(missing, room)
                room -= missing
            if missing:
                found.append((seated, _row(seated, missing)))
        return tuple(sorted(found, key=lambda pair: pair[0].slot))


def _arrival(seated: Seated) -> int:
    return seated.entry.number


def _row(seated: Seated, num_tokens: int) -> Row:
    entry, drawing = seated.entry, seated.entry.drawing
    return Row(
        slot=seated.slot,
        start=seated.cached,
        token_ids=entry.known(seated.cached, num_tokens),
        emits=seated.cached + num_tokens == entry.num_known,
        temperature=drawing.temperature,
        top_p=drawing.top_p,
        top_k=drawing.top_k,
        seed=drawing.seed,
        number=drawing.number,
    )
