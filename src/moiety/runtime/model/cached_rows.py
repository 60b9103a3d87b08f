"""What a step of decoding reads of the cache: runs of sequences, in the number format that they are computed in."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch

from moiety.cost.workspaces import converted_sequences

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.runtime.model.batch import Batch
    from moiety.runtime.model.kv_cache import CachedStep


class Run(NamedTuple):
    """Sequences of a batch that stand in consecutive slots."""

    low: int
    high: int
    slot: int
    """Of the first."""
    longest: int
    """Most tokens that one of them has in the cache."""


class Rooms(NamedTuple):
    """Memory that a layer's attention computes in, as much as a batch of its size may need."""

    logits: torch.Tensor
    """[sequences x heads x (tokens + 1)], float32."""
    weights: torch.Tensor
    """As many, float32."""
    hidden: torch.Tensor
    """[sequences x tokens], bool."""
    places: torch.Tensor
    """[tokens], int64: 0, 1, ..."""
    converted: list[torch.Tensor]
    """Float32, for keys and for values; none where the cache has them in that format."""


def rooms_for(step: CachedStep, layer: int, heads: int) -> Rooms:
    """Return rooms for the attention of so many heads over a layer of the step's cache."""
    cached = step.cache.layer(layer)
    device, kept, sequences = cached[0].device, cached[0].shape[2], len(step.batch.segments)
    logits, weights = (torch.empty(sequences * heads * (kept + 1), device=device) for _ in range(2))
    hidden = torch.empty(sequences * kept, dtype=torch.bool, device=device)
    converted: list[torch.Tensor] = []
    if cached[0].dtype != torch.float32:
        most = min(_num_converted(cached), sequences)
        converted = [torch.empty(most * prod(each.shape[1:]), device=device) for each in cached]
    return Rooms(logits, weights, hidden, torch.arange(kept, device=device), converted)


def runs_of(batch: Batch, kept: int, most: int | None = None) -> Iterator[Run]:
    """Yield the runs of a batch's sequences, in their order, of `most` each; `kept` tokens are cached of one."""
    segments = batch.segments
    breaks = [index + 1 for index, (one, other) in enumerate(pairwise(segments)) if other.slot != one.slot + 1]
    for first, last in pairwise((0, *breaks, len(segments))):
        for low in range(first, last, most or len(segments)):
            high = min(low + (most or len(segments)), last)
            longest = batch.most_cached or max(each.end for each in segments[low:high])
            yield Run(low, high, segments[low].slot, min(kept, longest))


def cached_runs(step: CachedStep, layer: int, rooms: Rooms) -> Iterator[tuple[Run, torch.Tensor, torch.Tensor]]:
    """Yield the runs with their keys and values, each [sequences, heads, longest, width] float32.

    Those of a cache in another format are converted in `rooms`, and stay until the next run.
    """
    cached = step.cache.layer(layer)
    most = _num_converted(cached) if rooms.converted else None
    for run in runs_of(step.batch, cached[0].shape[2], most):
        keys, values = (each[run.slot : run.slot + run.high - run.low, :, : run.longest] for each in cached)
        if rooms.converted:
            keys, values = (
                laid_out(room, *each.shape).copy_(each)
                for room, each in zip(rooms.converted, (keys, values), strict=True)
            )
        yield run, keys, values


def hide(logits: torch.Tensor, batch: Batch, low: int, window: int | None, rooms: Rooms) -> None:
    """Set to minus infinity the logits [sequences, heads, longest] of what the sequences from `low` on do not see."""
    sequences, _, longest = logits.shape
    ends = [each.end for each in batch.segments[low : low + sequences]]
    if min(ends) < longest:
        hidden = laid_out(rooms.hidden, sequences, longest)
        torch.ge(rooms.places[:longest], batch.tensors.ends[low : low + sequences, None], out=hidden)
        logits.masked_fill_(hidden[:, None], -torch.inf)
    for index, end in enumerate(ends):
        if window is not None and window < end:
            logits[index, :, : end - window].fill_(-torch.inf)


def seen_tokens(batch: Batch, run: Run, window: int | None) -> torch.Tensor | None:
    """Return which cached tokens each new one of a run sees, [sequences, longest]; None where all see all."""
    ends = [each.end for each in batch.segments[run.low : run.high]]
    if batch.most_cached is None and min(ends) >= run.longest and (window is None or window >= run.longest):
        return None
    end = batch.tensors.ends[run.low : run.high, None]
    to = torch.arange(run.longest, device=end.device)
    return to < end if window is None else (to < end) & (to >= end - window)


def laid_out(room: torch.Tensor, *shape: int) -> torch.Tensor:
    """Return the first items of a room [n] as a tensor of that shape."""
    return room[: prod(shape)].view(shape)


def _num_converted(cached: tuple[torch.Tensor, torch.Tensor]) -> int:
    """Return of how many sequences rows are converted at a time."""
    return converted_sequences(sum(prod(each.shape[1:]) for each in cached))
