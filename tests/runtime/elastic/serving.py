"""A small driver of a crew: greedy continuations that outlive their ranks, in both halves.

The launcher's half keeps a journal: every token once, in order. A rank's half steps its sequences, and fails where it
is told to.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from moiety.runtime.elastic.events import Ready, Said
from moiety.runtime.elastic.member import Member
from moiety.runtime.model.batch import Segment, packed
from moiety.runtime.model.kv_cache import KvCache

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moiety.runtime.elastic.crew import Crew
    from moiety.runtime.elastic.events import Event
    from moiety.runtime.elastic.generation import Generation
    from moiety.runtime.post import Post, Report

ENTRY = "tests.runtime.elastic.serving:work"
NUM_SLOTS, CAPACITY = 8, 96
MOST_TOKENS = 256
"""Of an attention group in a step: all its prompts, with what was generated for them, after a loss."""
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass
class Known:
    """A sequence, as a rank has it: all tokens that are known, and how many of them are in the cache."""

    slot: int
    tokens: list[int]
    wanted: int
    cached: int = 0


@dataclass
class Fault:
    """What a rank does to itself when an op of a layer has ended, in a step after it was told."""

    op: str
    layer: int
    what: str


class Worker:
    """A rank's half, with what it keeps from one generation to the next."""

    def __init__(self, member: Member) -> None:
        self._cache: KvCache | None = None
        self._cached: dict[int, tuple[int, int]] = {}
        """Of each sequence: its slot, and the tokens of it in the cache."""
        self._fault: Fault | None = None
        self._mark = member.beacon.mark
        member.beacon.mark = self._watched  # type: ignore[method-assign]

    def _watched(self, name: str, layer: int = -1) -> None:
        self._mark(name, layer)
        fault = self._fault
        if fault is None or (name, layer) != (fault.op, fault.layer):
            return
        self._fault = None
        if fault.what == "spin":
            while True:
                time.sleep(0.1)
        if fault.what == "raise":
            raise ZeroDivisionError("as it was told")
        os.kill(os.getpid(), SIGNALS[fault.what])

    @torch.inference_mode()
    def __call__(self, generation: Generation) -> None:
        """Step until the generation ends."""
        sequences: dict[int, Known] = {}
        if not generation.keeps_cache or self._cache is None:
            self._cache, self._cached = KvCache.for_seat(generation.seat, NUM_SLOTS, CAPACITY), {}
        group = generation.seat.groups["tp"]
        dealt: list[Any] = []
        while True:
            for payload in generation.receive(0.0):
                if "fault" in payload:
                    self._fault = Fault(**payload["fault"])
                else:
                    dealt.append(payload)
            due = sum(len(each.tokens) < each.wanted for each in sequences.values())
            counts = generation.agree([due, len(dealt)])
            for _ in range(min(counts[rank][1] for rank in group)):  # what has come to all of the group
                self._take(generation, dealt.pop(0), sequences)
            if not any(count for count, _ in counts):
                time.sleep(0.005)
                continue
            self._step(generation, sequences)

    def _take(self, generation: Generation, payload: Any, sequences: dict[int, Known]) -> None:  # noqa: ANN401
        given: dict[int, list[int]] = {int(key): value for key, value in payload["sequences"].items()}
        numbers = sorted(given)
        least = generation.least_in_group([self._cached.get(number, (0, 0))[1] for number in numbers])
        slots = {number: self._cached[number][0] for number in numbers if number in self._cached}
        free = iter(sorted(set(range(NUM_SLOTS)) - set(slots.values())))
        for number, cached in zip(numbers, least, strict=True):
            slot = slots[number] if number in slots else next(free)
            known = given[number]
            sequences[number] = Known(slot, known, payload["wanted"][str(number)], min(cached, len(known) - 1))
        self._cached = {number: (each.slot, each.cached) for number, each in sequences.items()}

    def _step(self, generation: Generation, sequences: dict[int, Known]) -> None:
        model, cache = generation.model, self._cache
        assert cache is not None
        due = {number: each for number, each in sequences.items() if len(each.tokens) < each.wanted}
        segments = [
            Segment(each.slot, each.cached, tuple(each.tokens[each.cached :]), emits=True) for each in due.values()
        ]
        batch = packed(segments, busiest=MOST_TOKENS)
        states = model.hidden(batch, cache, None)
        if not due:
            return
        tokens = model.logits(states, batch).argmax(dim=-1).tolist()
        said: list[list[int]] = []
        for (number, each), segment, token in zip(due.items(), segments, tokens, strict=True):
            said.append([number, len(each.tokens), token])
            each.tokens.append(token)
            each.cached = segment.end
            self._cached[number] = (each.slot, each.cached)
        if generation.seat.coordinates["tp"] == 0:
            assert model.decoding is not None, "on CPUs steps are noted"
            played = model.decoding.document()["decode_steps_in_arena"]
            generation.say({"tokens": said, "computed": batch.num_tokens, "played": played})


def work(post: Post) -> Report:
    """Do a rank's half; what `job.entry` names."""
    member = Member(post)
    member.serve(Worker(member))
    return {}


@dataclass
class Journal:
    """The launcher's half: what is known of every sequence, whoever computes it."""

    prompts: list[list[int]]
    num_new: int
    tokens: list[list[int]] = field(default_factory=list)
    owners: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """The members of the attention group that has each sequence."""
    computed: list[int] = field(default_factory=list)
    """Tokens of every step of every group since the last ready generation."""
    num_played: int = 0
    """Steps that the rank which said something last has computed in its arena, of this generation."""
    events: list[Event] = field(default_factory=list)
    said_s: list[float] = field(default_factory=list)
    """When tokens came."""

    def __post_init__(self) -> None:
        self.tokens = [list(prompt) for prompt in self.prompts]

    @property
    def is_done(self) -> bool:
        return all(
            len(all_) == len(prompt) + self.num_new for all_, prompt in zip(self.tokens, self.prompts, strict=True)
        )

    @property
    def new_tokens(self) -> list[list[int]]:
        return [known[len(prompt) :] for known, prompt in zip(self.tokens, self.prompts, strict=True)]

    def deal(self, crew: Crew) -> None:
        """Give every sequence to the group that had it, or to the one that has fewest."""
        strategy = crew.plan.pools[0].strategy
        ranks = crew.ranks()
        groups = [ranks[first : first + strategy.tp] for first in range(0, len(ranks), strategy.tp)]
        members = {tuple(each.member for each in group): group for group in groups}
        for number in range(len(self.prompts)):
            if self.owners.get(number) not in members:
                held = list(self.owners.values())
                self.owners[number] = min(members, key=lambda each: (held.count(each), each))
        for key, group in members.items():
            mine = [number for number in self.owners if self.owners[number] == key]
            wanted = {str(number): len(self.prompts[number]) + self.num_new for number in mine}
            payload = {"sequences": {str(number): self.tokens[number] for number in mine}, "wanted": wanted}
            for each in group:
                crew.send(each.rank, payload, generation=crew.generation)

    def take(self, crew: Crew, event: Event) -> None:
        """Take in an event."""
        self.events.append(event)
        if isinstance(event, Ready):
            self.computed.clear()
            self.num_played = 0
            self.deal(crew)
        elif isinstance(event, Said):
            payload: Any = event.payload
            self.said_s.append(time.perf_counter())
            self.computed.append(payload["computed"])
            self.num_played = payload["played"]
            for number, place, token in payload["tokens"]:
                known = self.tokens[number]
                assert place <= len(known), "tokens come in order"
                if place == len(known):
                    known.append(token)
                assert known[place] == token, "a token that comes twice is the same"

    def run(self, crew: Crew, until: Callable[[], bool] | None = None, *, within_s: float = 120.0) -> None:
        """Go on until all sequences are done, or `until` says so."""
        deadline_s = time.monotonic() + within_s
        while not (self.is_done if until is None else until()):
            assert time.monotonic() < deadline_s, f"not done: {self.events[-5:]}"
            for event in crew.poll(0.05):
                self.take(crew, event)

    def of(self, kind: type[Event]) -> Sequence[Any]:
        """Return the events of a kind so far."""
        return [each for each in self.events if isinstance(each, kind)]
