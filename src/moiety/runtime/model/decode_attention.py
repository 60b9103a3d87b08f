"""Attention of one new token of every sequence over the cache; in float32 on CPUs, without memory of its own."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from moiety.runtime.arena.trace import called
from moiety.runtime.model.sinks import attention_with_sinks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moiety.runtime.model.batch import Batch, Segment
    from moiety.runtime.model.kv_cache import CachedStep


class Run(NamedTuple):
    """Sequences of a batch that stand in consecutive slots."""

    low: int
    high: int
    slot: int
    """Of the first."""
    longest: int
    """Most tokens that one of them has in the cache."""


def runs_of(segments: Sequence[Segment]) -> Iterator[Run]:
    """Yield the runs of the segments, in their order."""
    breaks = [index + 1 for index, (one, other) in enumerate(pairwise(segments)) if other.slot != one.slot + 1]
    for low, high in pairwise((0, *breaks, len(segments))):
        yield Run(low, high, segments[low].slot, max(each.end for each in segments[low:high]))


def decode_attention(
    step: CachedStep,
    layer: int,
    query: torch.Tensor,
    *,
    scaling: float,
    window: int | None,
    sinks: torch.Tensor | None,
    value_width: int,
) -> torch.Tensor:
    """Return the attention of queries [1, heads, sequences, width], [sequences, heads, value width].

    A token sees `window` cached ones at most, itself included; `sinks` [heads] are as for `attention_with_sinks`.
    """
    heads, sequences = query.shape[1:3]
    out = query.new_empty(sequences, heads, value_width)
    asked = query[0].transpose(0, 1).contiguous()
    if query.device.type == "cpu" and query.dtype == torch.float32:
        capacity = step.cache.capacity
        rooms = [query.new_empty(sequences * heads * (capacity + 1)) for _ in range(2)]
        masks = mask_rooms(step, query.device)
        called(_multiplied, step, layer, asked, scaling, window, sinks, out, rooms, masks)
    else:
        called(_by_library, step, layer, asked, scaling, window, sinks, out)
    return out


def _multiplied(  # noqa: PLR0913, PLR0917 - tensors that a tape moves stand among the arguments
    step: CachedStep,
    layer: int,
    asked: torch.Tensor,
    scaling: float,
    window: int | None,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
    rooms: list[torch.Tensor],
    masks: list[torch.Tensor],
) -> None:
    """Fill `out` by two products and a softmax; the query heads that share a key head stand where tokens do else."""
    heads = asked.shape[1]
    for low, high, slot, longest in runs_of(step.batch.segments):
        keys, values = (each[slot : slot + high - low, :, :longest].flatten(0, 1) for each in step.cache.layer(layer))
        rows = asked[low:high].view(keys.shape[0], -1, keys.shape[2])
        logits = _laid_out(rooms[0], *rows.shape[:2], longest)
        torch.baddbmm(logits, rows, keys.transpose(1, 2), beta=0, alpha=scaling, out=logits)
        by_sequence = logits.view(high - low, heads, longest)
        hide(by_sequence, step.batch, low, window, masks)
        weights = _softmax(by_sequence, sinks, rooms).view(*rows.shape[:2], -1)
        torch.bmm(weights[:, :, :longest], values, out=out[low:high].view(*rows.shape[:2], -1))


def mask_rooms(step: CachedStep, device: torch.device) -> list[torch.Tensor]:
    """Return what `hide` needs: room for a mask, and the places in a sequence."""
    capacity = step.cache.capacity
    room = torch.empty(len(step.batch.segments) * capacity, dtype=torch.bool, device=device)
    return [room, torch.arange(capacity, device=device)]


def hide(logits: torch.Tensor, batch: Batch, low: int, window: int | None, masks: list[torch.Tensor]) -> None:
    """Set to minus infinity the logits [sequences, heads, longest] of what the sequences from `low` on do not see."""
    sequences, _, longest = logits.shape
    ends = [each.end for each in batch.segments[low : low + sequences]]
    room, places = masks
    if min(ends) < longest:
        hidden = _laid_out(room, sequences, longest)
        torch.ge(places[:longest], batch.tensors.ends[low : low + sequences, None], out=hidden)
        logits.masked_fill_(hidden[:, None], -torch.inf)
    for index, end in enumerate(ends):
        if window is not None and window < end:
            logits[index, :, : end - window].fill_(-torch.inf)


def _softmax(logits: torch.Tensor, sinks: torch.Tensor | None, rooms: list[torch.Tensor]) -> torch.Tensor:
    """Return the weights of `logits` [sequences, heads, longest], in the first room; a sink's are last."""
    sequences, heads, longest = logits.shape
    if sinks is None:
        return torch.softmax(logits, dim=-1, out=_laid_out(rooms[1], sequences, heads, longest))
    joined = _laid_out(rooms[1], sequences, heads, longest + 1)
    joined[:, :, :longest].copy_(logits)
    joined[:, :, longest].copy_(sinks)
    return torch.softmax(joined, dim=-1, out=_laid_out(rooms[0], sequences, heads, longest + 1))


def _laid_out(room: torch.Tensor, *shape: int) -> torch.Tensor:
    """Return the first items of a room [n] as a tensor of that shape."""
    return room[: prod(shape)].view(shape)


def _by_library(
    step: CachedStep,
    layer: int,
    asked: torch.Tensor,
    scaling: float,
    window: int | None,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Fill `out` by PyTorch's attention."""
    heads = asked.shape[1]
    for low, high, slot, longest in runs_of(step.batch.segments):
        keys, values = (each[slot : slot + high - low, :, :longest] for each in step.cache.layer(layer))
        groups = keys.shape[1]
        rows = asked[low:high].view(high - low, groups, heads // groups, -1)
        seen = seen_tokens(step.batch, low, high, longest, window)
        mask = None if seen is None else seen[:, None, None].expand(-1, -1, heads // groups, -1)
        if sinks is not None:
            columns = sinks.reshape(groups, heads // groups)[:, :, None]
            found = attention_with_sinks(rows, keys, values, mask, scaling, columns)
        else:
            found = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scaling)
        out[low:high] = found.view(high - low, heads, -1)


def seen_tokens(batch: Batch, low: int, high: int, longest: int, window: int | None) -> torch.Tensor | None:
    """Return which cached tokens each new one sees, [sequences, longest]; None where all see all."""
    ends = [each.end for each in batch.segments[low:high]]
    if min(ends) == longest and (window is None or window >= longest):
        return None
    to, end = torch.arange(longest, device=batch.tensors.ends.device), batch.tensors.ends[low:high, None]
    return to < end if window is None else (to < end) & (to >= end - window)
