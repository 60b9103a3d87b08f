"""What every rank of `moiety serve` does: in each generation, one step after the other, as it is ordered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moiety.runtime.conversion import integers
from moiety.runtime.elastic.member import Member
from moiety.runtime.engine import Engine
from moiety.runtime.model.batch import Segment
from moiety.runtime.sampling import NO_TOKEN, Sampling, draw_each
from moiety.runtime.serving.order import OwnWork, Row, StepAnswer, StepOrder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.runtime.elastic.generation import Generation
    from moiety.runtime.job import Serving
    from moiety.runtime.model.kv_cache import KvCache
    from moiety.runtime.post import Post, Report

_LISTEN_S = 0.5


def serve(post: Post) -> Report:
    """Do the steps that are ordered, generation after generation, until the crew is closed; the report is empty."""
    serving = post.job.serving
    assert serving is not None, "the job says how many sequences there is room for"
    Member(post).serve(Worker(serving))
    return {}


class Worker:
    """A rank's work, with the KV cache that it keeps from one generation to the next as long as its group is whole."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._cache: KvCache | None = None

    def __call__(self, generation: Generation) -> None:
        """Do the steps of one generation; it ends with an error that `Member.serve` takes."""
        engine = Engine(generation.model, generation.network, generation.turns)
        if self._cache is None or not generation.keeps_cache:
            self._cache = engine.new_cache(self._serving.num_slots, self._serving.capacity)
        while True:
            for payload in generation.receive(_LISTEN_S):
                order = StepOrder.model_validate(payload)
                generation.agree(())
                tokens = take_step(order, generation.seat.attention_group, engine, self._cache)
                work = own_work(order.groups[generation.seat.attention_group], generation)
                counts = _counts(generation) if order.asks_counts else ()
                answer = StepAnswer(number=order.number, tokens=tuple(tokens), counts=counts, work=work)
                generation.say(answer.model_dump(mode="json"))


def _counts(generation: Generation) -> tuple[tuple[int, ...], ...]:
    """Return what this rank's attention group has asked its experts for since the last time, and begin anew.

    All ranks of a group count the same tokens: the first one says it.
    """
    layers = [layer for _, layer in sorted(generation.model.expert_layers.items())]
    counts = tuple(tuple(integers(each.counts)) for each in layers)
    for each in layers:
        each.counts = torch.zeros_like(each.counts)
    return () if generation.seat.coordinates["tp"] else counts


def own_work(rows: Sequence[Row], generation: Generation) -> OwnWork | None:
    """Return what this rank did of the step that has just ended."""
    own_s, alike_s, exposed_s = generation.own_time()
    if generation.model.device.type != "cpu":
        return None
    tokens = sum(len(row.token_ids) for row in rows)
    attended = sum(len(row.token_ids) * (row.start + len(row.token_ids)) for row in rows)
    amounts = (tokens, attended, sum(row.emits for row in rows))
    return OwnWork(own_s=own_s, alike_s=alike_s, exposed_s=exposed_s, amounts=amounts)


@torch.inference_mode()
def take_step(order: StepOrder, group: int, engine: Engine, cache: KvCache) -> list[int | None]:
    """Take one step together with all other ranks; return what the rows of this attention group emit.

    None stands for the token of a row whose logits were not finite; nothing of its sequence is left in the cache.
    """
    rows = order.groups[group]
    segments = [Segment(row.slot, row.start, row.token_ids, row.emits) for row in rows]
    emitting = [row for row in rows if row.emits]
    tokens = engine.step(segments, cache, lambda logits: _drawn(logits, emitting), order.busiest)
    for row, token in zip(emitting, tokens, strict=True):
        if token == NO_TOKEN:
            cache.clear(row.slot)
    return [None if token == NO_TOKEN else token for token in tokens]


def _drawn(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Return the next token of each emitting row, or `NO_TOKEN`; its draw depends on seed, number and place alone."""
    return draw_each(
        logits,
        [Sampling(row.temperature, row.top_p, row.top_k, row.seed) for row in rows],
        [row.number for row in rows],
        [row.start + len(row.token_ids) for row in rows],
    )
