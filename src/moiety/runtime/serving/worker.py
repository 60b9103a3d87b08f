"""What every rank of `moiety serve` does: in each generation, one step after the other, as it is ordered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.runtime.elastic.member import Member
from moiety.runtime.engine import Engine
from moiety.runtime.model.batch import Segment
from moiety.runtime.sampling import Sampling, draw_each
from moiety.runtime.serving.order import Row, StepAnswer, StepOrder

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from moiety.runtime.elastic.generation import Generation
    from moiety.runtime.job import Serving
    from moiety.runtime.model.kv_cache import KvCache
    from moiety.runtime.post import Post, Report

_LISTEN_S = 0.5


def serve(post: Post) -> Report:
    """Do the steps that are ordered, generation after generation, until the crew is closed; the report is empty."""
    serving = post.job.serving
    assert serving is not None, "the job says how many sequences there is room for"
    Member(post).serve(lambda generation: _serve(generation, serving))
    return {}


def _serve(generation: Generation, serving: Serving) -> None:
    """Do the steps of one generation, its cache empty at first; it ends with an error that `Member.serve` takes."""
    group = generation.seat.attention_group
    engine = Engine(generation.model, generation.network, generation.turns)
    cache = engine.new_cache(serving.num_slots, serving.capacity)
    while True:
        for payload in generation.receive(_LISTEN_S):
            order = StepOrder.model_validate(payload)
            generation.agree(())
            tokens = _take(order, group, engine, cache)
            generation.say(StepAnswer(number=order.number, tokens=tuple(tokens)).model_dump(mode="json"))


def _take(order: StepOrder, group: int, engine: Engine, cache: KvCache) -> list[int]:
    """Take one step together with all other ranks; return what the rows of this attention group emit."""
    rows = order.groups[group]
    segments = [Segment(row.slot, row.start, row.token_ids, row.emits) for row in rows]
    emitting = [row for row in rows if row.emits]
    overlapped = engine.splits(order.busiest)
    return engine.step(segments, cache, lambda logits: _drawn(logits, emitting), overlapped=overlapped)


def _drawn(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Return the next token of each emitting row; its draw depends on seed, number and place alone."""
    return draw_each(
        logits,
        [Sampling(row.temperature, row.top_p, row.top_k, row.seed) for row in rows],
        [row.number for row in rows],
        [row.start + len(row.token_ids) for row in rows],
    )
