"""What every rank of `moiety serve` does: loads its part, then takes one step after the other, as it is ordered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.engine import Engine
from moiety.runtime.generation import network_of
from moiety.runtime.model.batch import Segment
from moiety.runtime.model.load import load_model
from moiety.runtime.overlap import Turns
from moiety.runtime.sampling import Sampling, draw_each
from moiety.runtime.seat import seat_of
from moiety.runtime.serving.heartbeat import heartbeat
from moiety.runtime.serving.order import Row, StepAnswer, StepOrder

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from moiety.runtime.model.kv_cache import KvCache
    from moiety.runtime.post import Post, Report


def serve(post: Post) -> Report:
    """Do the steps that are ordered until no more can come; return an empty report."""
    serving = post.job.serving
    assert serving is not None, "the job says how many sequences there is room for"
    with heartbeat(post.say):
        network = network_of(post)
        try:
            turns = Turns()
            seat = seat_of(post.job.plan, post.world.rank)
            model = load_model(seat, Checkpoint.open(post.job.checkpoint), network, turns=turns)
            engine = Engine(model, network, turns)
            cache = engine.new_cache(serving.num_slots, serving.capacity)
            _take(_first_step(seat.num_attention_groups), seat.attention_group, engine, cache)
            engine.world.barrier()
            post.say({"ready": True})
            for line in post.orders():
                order = StepOrder.model_validate_json(line)
                tokens = _take(order, seat.attention_group, engine, cache)
                answer = StepAnswer(number=order.number, tokens=tuple(tokens))
                post.say({"answer": answer.model_dump(mode="json")})
            return {}
        finally:
            network.close()


def _first_step(num_groups: int) -> StepOrder:
    """Return a step that makes room for the cache and connects the groups; no later one looks at its token."""
    row = Row(slot=0, start=0, token_ids=(0,), emits=True)
    return StepOrder(number=0, groups=((row,),) * num_groups)


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
