"""The engine: prompts in, tokens out, all ranks of a plan step by step together."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch

from moiety.errors import InputError
from moiety.runtime.comm.priority import Priority
from moiety.runtime.conversion import integers
from moiety.runtime.model.batch import Segment, packed
from moiety.runtime.model.kv_cache import KvCache
from moiety.runtime.sampling import NO_TOKEN, Room, Sampling, most_likely
from moiety.runtime.telemetry import clock_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moiety.runtime.comm.network import Network
    from moiety.runtime.model.batch import Batch
    from moiety.runtime.model.rank_model import RankModel
    from moiety.runtime.overlap import Turns

GREEDY = Sampling()
OVERLAPPED_TOKENS = 32
"""Steps with fewer tokens on every rank are not cut in two: there would be too little to hide an exchange behind."""
MAX_SEQUENCES = 64
"""Sequences of an attention group that are in flight at a time; further prompts wait."""


@dataclass(slots=True)
class Request:
    """A prompt and what has been generated for it, on the ranks of its attention group."""

    number: int
    """Place among all prompts."""
    slot: int
    prompt: tuple[int, ...]
    wanted: int
    """Tokens to generate at most."""
    cached: int = 0
    """Tokens in the cache."""
    generated: list[int] = field(default_factory=list[int])
    done: bool = False


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of the steps of a generation, on this rank."""

    prefill_s: tuple[float, ...]
    decode_s: tuple[float, ...]


class Engine:
    """Runs a rank's model in step with all others; every rank of the plan makes one and calls it alike."""

    def __init__(
        self,
        model: RankModel,
        network: Network,
        turns: Turns,
        *,
        max_tokens_per_step: int = 8192,
        min_overlapped_tokens: int = OVERLAPPED_TOKENS,
    ) -> None:
        self._model, self._turns = model, turns
        self._max_tokens, self._least_overlapped = max_tokens_per_step, min_overlapped_tokens
        seat = model.seat
        self._pipeline = network.group(seat.groups["pp"], "pipeline", Priority.REDUCTION)
        self.world = network.group(tuple(range(seat.plan.num_gpus)), "world", Priority.REDUCTION)
        """All ranks of the plan."""
        self._stage = network.group(seat.groups["stage"], "steps", Priority.REDUCTION)
        self.overlaps = seat.plan.options.two_batch_overlap and seat.routes_tokens
        """Whether the plan's steps are cut into micro-batches that take turns."""
        self.times = StepTimes((), ())
        self._received: dict[int, torch.Tensor] = {}
        self._drawn = self._new_room(0)
        self._counts, self._came = (torch.empty(self._stage.size, 1, dtype=torch.int64) for _ in range(2))
        self.cache_bytes = 0
        """Bytes of the last generation's KV cache."""

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        stop: frozenset[int] = frozenset(),
    ) -> list[list[int]]:
        """Return the new tokens of every prompt, in their order, on every rank.

        Prompts are dealt out over the attention groups. A sequence ends with a token of `stop`, or after
        `max_new_tokens`. Raises InputError where the logits of one are not finite.
        """
        seat = self._model.seat
        groups = seat.num_attention_groups
        mine = [number for number in range(len(prompts)) if number % groups == seat.attention_group]
        most = max(len(range(group, len(prompts), groups)) for group in range(groups))
        prefill: list[float] = []
        decode: list[float] = []
        found: dict[int, list[int]] = {}
        for first in range(0, most, MAX_SEQUENCES):
            wave = [
                Request(number, slot, tuple(prompts[number]), max_new_tokens)
                for slot, number in enumerate(mine[first : first + MAX_SEQUENCES])
            ]
            capacity = max((len(prompts[each.number]) for each in wave), default=0) + max_new_tokens
            cache = self.new_cache(len(wave), capacity)
            while True:
                started = time.perf_counter()
                segments = self._segments(wave)
                busiest = self._busiest(sum(len(each.token_ids) for each in segments))
                if busiest == 0:
                    break
                is_prefill = any(each.cached < len(each.prompt) for each in wave)
                self._step(segments, wave, cache, sampling, stop, busiest)
                (prefill if is_prefill else decode).append(time.perf_counter() - started)
            self.cache_bytes = max(self.cache_bytes, cache.size_bytes)
            found |= {each.number: each.generated for each in wave}
        self.times = StepTimes(tuple(prefill), tuple(decode))
        return self._gathered(found, len(prompts))

    def new_cache(self, num_slots: int, capacity: int) -> KvCache:
        """Return an empty cache for so many sequences of so many tokens."""
        return KvCache.for_seat(self._model.seat, max(num_slots, 1), capacity)

    @torch.inference_mode()
    def timed_step(self, batches: Sequence[Batch], cache: KvCache, *, overlapped: bool) -> float:
        """Return the seconds of one step of these micro-batches: through the layers, the head, and the next tokens.

        Overlapped micro-batches go in pairs. Cached tokens that no step has computed are zeros.
        """
        clock = clock_of(self._model.device)
        started = clock()
        logits = self._logits(batches, self.states(batches, cache, overlapped=overlapped))
        if logits is not None:
            most_likely(logits, self._drawn_room(logits.shape[0]))
        return clock() - started

    @torch.inference_mode()
    def states(self, batches: Sequence[Batch], cache: KvCache, *, overlapped: bool) -> list[torch.Tensor]:
        """Return the states of the micro-batches after this stage, each [tokens, hidden]; overlapped in pairs."""
        pair = 2 if overlapped else 1
        found: list[torch.Tensor] = []
        for first in range(0, len(batches), pair):
            jobs = [lambda batch=batch: self._through_stage(batch, cache) for batch in batches[first : first + pair]]
            found += self._turns.run(jobs)
        return found

    def _busiest(self, tokens: int) -> int:
        """Return the most tokens that a rank of the stage has for this step; while there are any, all must step."""
        if self._stage.size == 1:
            return tokens
        sent, came = self._counts.fill_(tokens), self._came
        return max(integers(self._stage.exchange_counts(sent, came).view(-1)))

    def _gathered(self, found: dict[int, list[int]], number: int) -> list[list[int]]:
        """Return everyone's tokens, in the order of the prompts."""
        everyone: dict[int, list[int]] = {}
        for part in self.world.gather_objects(found):
            everyone |= cast("dict[int, list[int]]", part)
        return [everyone[index] for index in range(number)]

    def _step(
        self,
        segments: list[Segment],
        wave: list[Request],
        cache: KvCache,
        sampling: Sampling,
        stop: frozenset[int],
        busiest: int,
    ) -> None:
        """Compute one step of the sequences and append what they emit; raise InputError where one emits `NO_TOKEN`."""
        by_slot = {each.slot: each for each in wave}
        emitting = [segment for segment in segments if segment.emits]
        numbers, places = [by_slot[each.slot].number for each in emitting], [each.end for each in emitting]
        room = self._drawn_room(len(emitting))
        tokens = self.step(segments, cache, lambda logits: sampling.draw(logits, numbers, places, room), busiest)
        for segment in segments:
            by_slot[segment.slot].cached = segment.end
        for segment, token in zip(emitting, tokens, strict=True):
            sequence = by_slot[segment.slot]
            if token == NO_TOKEN:
                rule = f"the logits of its token {segment.end} are not finite"
                remedy = "compute in a format of a wider range: moiety plan ... --set dtypes.activations=bf16"
                raise InputError(rule, field=f"prompts[{sequence.number}]", remedy=remedy)
            sequence.generated.append(token)
            sequence.done = token in stop or len(sequence.generated) >= sequence.wanted

    @torch.inference_mode()
    def step(
        self,
        segments: list[Segment],
        cache: KvCache,
        draw: Callable[[torch.Tensor], torch.Tensor],
        busiest: int,
    ) -> list[int]:
        """Compute one step of sequences; return the tokens that they emit, in order, known to every pipeline stage.

        All ranks of a stage step together and agree on `busiest`, the most tokens that an attention group has. `draw`
        gives the next tokens, int64 [rows], of logits [rows, vocabulary], `NO_TOKEN` where there is none; a row is an
        emitting segment, in order.
        """
        parts, most = [segments], [busiest]
        if self.overlaps and busiest >= self._least_overlapped:
            parts, most = self._halves(segments), [busiest // 2, busiest - busiest // 2]
        batches = [packed(each, self._model.device, part, most[part]) for part, each in enumerate(parts)]
        logits = self._logits(batches, self.states(batches, cache, overlapped=len(batches) > 1))
        num_emitting = sum(each.emits for each in segments)
        tokens = self._drawn_room(num_emitting).tokens if logits is None else draw(logits)
        if self._pipeline.size > 1 and num_emitting:
            tokens = self._pipeline.broadcast(tokens, self._pipeline.size - 1)
        return integers(tokens)

    def _segments(self, wave: list[Request]) -> list[Segment]:
        """Return what each unfinished sequence computes next, prompts in chunks of the step's room."""
        room = self._max_tokens
        found: list[Segment] = []
        for each in wave:
            if each.done or room == 0:
                continue
            known = (*each.prompt, *each.generated)
            new = known[each.cached : each.cached + room]
            room -= len(new)
            found.append(Segment(each.slot, each.cached, new, emits=each.cached + len(new) == len(known)))
        return found

    @staticmethod
    def _halves(segments: list[Segment]) -> list[list[Segment]]:
        """Return the two micro-batches of a step that is overlapped.

        A prompt may be cut in two: its second half is computed after its first, layer by layer.
        """
        half = sum(len(each.token_ids) for each in segments) // 2
        first: list[Segment] = []
        second: list[Segment] = []
        for each in segments:
            if half >= len(each.token_ids):
                first.append(each)
            elif half == 0:
                second.append(each)
            else:
                first.append(Segment(each.slot, each.start, each.token_ids[:half], emits=False))
                second.append(Segment(each.slot, each.start + half, each.token_ids[half:], each.emits))
            half -= min(half, len(each.token_ids))
        return [first, second]

    def _drawn_room(self, number: int) -> Room:
        """Return room for so many tokens, the same as for the step before where that is wide enough."""
        if len(self._drawn.tokens) < number:
            self._drawn = self._new_room(number)
        return self._drawn.first(number)

    def _new_room(self, number: int) -> Room:
        return Room.of(number, self._model.dtype, self._model.device)

    def _received_room(self, batch: Batch) -> torch.Tensor:
        """Return room for the states of the stage before, the same as for the step before where the shape is too."""
        shape = batch.num_tokens, self._model.seat.plan.model.hidden_size
        room = self._received.get(batch.part)
        if room is None or room.shape != shape:
            room = torch.empty(shape, dtype=self._model.dtype, device=self._model.device)
            self._received[batch.part] = room
        return room

    def _logits(self, batches: Sequence[Batch], states: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Return the logits of all micro-batches' emitting tokens on the last stage, None on the others."""
        model = self._model
        if not model.seat.is_last_stage:
            return None
        parts = [model.logits(each, batch) for each, batch in zip(states, batches, strict=True) if batch.num_emitting]
        return None if not parts else parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.inference_mode()  # a setting of each thread
    def _through_stage(self, batch: Batch, cache: KvCache) -> torch.Tensor:
        """Return the states of a micro-batch after this stage, received from and sent on to its neighbours."""
        model, pipeline = self._model, self._pipeline
        received = None
        if not model.seat.is_first_stage:
            received = self._received_room(batch)
            if batch.num_tokens:
                received = pipeline.receive(received, pipeline.index - 1).wait()
        states = model.hidden(batch, cache, received)
        if not model.seat.is_last_stage and batch.num_tokens:
            pipeline.send(states.contiguous(), pipeline.index + 1).wait()
        return states
