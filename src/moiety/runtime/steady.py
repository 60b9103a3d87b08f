"""What a step of decoding asks the allocator for once steps of its shape have been taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moiety.cost.workspaces import tokens_with_room
from moiety.runtime.allocations import allocations_of
from moiety.runtime.engine import MAX_SEQUENCES
from moiety.runtime.model.batch import Segment, packed
from moiety.runtime.model.graphs import GraphedDecoding, obstacle_to_graphs

if TYPE_CHECKING:
    from moiety.runtime.engine import Engine
    from moiety.runtime.model.rank_model import RankModel

_NUM_BEFORE = 4
"""Steps before the one that is counted: the second is noted, the third lays out the arena."""


def outside_arena(model: RankModel, *, draws: bool) -> list[str]:
    """Return what a step of decoding allocates for outside the arena, once steps of its shape have been taken.

    `draws`: whether tokens are drawn at random.
    """
    by_sampling = ["the next tokens: they are drawn at random"] if draws and model.seat.is_last_stage else []
    if isinstance(model.decoding, GraphedDecoding):
        return by_sampling
    if model.decoding is None:
        return [f"all: {obstacle_to_graphs(model.seat, model.expert_layers)}"]
    layers, moe = model.expert_layers.values(), model.seat.plan.model.moe
    top_k = 0 if moe is None else moe.top_k

    def is_fixed(tokens: int) -> bool:
        return all(each.is_fixed(tokens, top_k, tokens_with_room(tokens)) for each in layers)

    most = max((tokens for tokens in range(MAX_SEQUENCES + 1) if is_fixed(tokens)), default=0)
    parts = {
        f"expert layers: in steps of more than {most} tokens of an attention group": most < MAX_SEQUENCES,
        "products in BF16: oneDNN's scratchpads": model.dtype == torch.bfloat16,
    }
    return [said for said, is_so in parts.items() if is_so] + by_sampling


def decode_allocations(engine: Engine, model: RankModel, num_sequences: int) -> int:
    """Return how many requests to PyTorch's allocator a step of decoding makes on this rank; all ranks call it.

    The step is that of so many sequences an attention group, from packing its tokens to the most likely next ones.
    """
    cache = engine.new_cache(num_sequences, 2 + _NUM_BEFORE)

    def step(cached: int) -> float:
        segments = [Segment(slot, cached, (slot,), emits=True) for slot in range(num_sequences)]
        return engine.timed_step([packed(segments, model.device)], cache, overlapped=False)

    for number in range(_NUM_BEFORE):
        step(1 + number)
    _, found = allocations_of(lambda: step(1 + _NUM_BEFORE), held_bytes=0, device=model.device)
    return found.count
