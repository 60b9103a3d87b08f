"""Attention of one new token of every sequence over the cache; on CPUs without memory of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from moiety.runtime.arena.trace import called
from moiety.runtime.model.cached_rows import cached_runs, hide, laid_out, rooms_for, runs_of, seen_tokens
from moiety.runtime.model.sinks import attention_with_sinks

if TYPE_CHECKING:
    from moiety.runtime.model.cached_rows import Rooms
    from moiety.runtime.model.kv_cache import CachedStep


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

    A token sees `window` cached ones at most, itself included; `sinks` [heads] are as for `attention_with_sinks`. CPUs
    compute it in FP32, whatever the formats of queries and cache.
    """
    heads, sequences = query.shape[1:3]
    asked = query[0].transpose(0, 1)
    if query.device.type != "cpu":
        out = query.new_empty(sequences, heads, value_width)
        _by_library(step, layer, asked.contiguous(), scaling, window, sinks, out)
        return out
    wide = asked.float().contiguous()
    out = wide.new_empty(sequences, heads, value_width)
    called(_multiplied, step, layer, wide, scaling, window, sinks, out, rooms_for(step, layer, heads))
    return out.to(query.dtype)


def _multiplied(  # noqa: PLR0913, PLR0917 - tensors that a tape moves stand among the arguments
    step: CachedStep,
    layer: int,
    asked: torch.Tensor,
    scaling: float,
    window: int | None,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
    rooms: Rooms,
) -> None:
    """Fill `out` by two products and a softmax; the query heads that share a key head stand where tokens do else."""
    heads = asked.shape[1]
    for run, cached_keys, cached_values in cached_runs(step, layer, rooms):
        keys, values = cached_keys.flatten(0, 1), cached_values.flatten(0, 1)
        rows = asked[run.low : run.high].view(keys.shape[0], -1, keys.shape[2])
        logits = laid_out(rooms.logits, *rows.shape[:2], run.longest)
        torch.baddbmm(logits, rows, keys.transpose(1, 2), beta=0, alpha=scaling, out=logits)
        by_sequence = logits.view(run.high - run.low, heads, run.longest)
        hide(by_sequence, step.batch, run.low, window, rooms)
        weights = _softmax(by_sequence, sinks, rooms).view(*rows.shape[:2], -1)
        torch.bmm(weights[:, :, : run.longest], values, out=out[run.low : run.high].view(*rows.shape[:2], -1))


def _softmax(logits: torch.Tensor, sinks: torch.Tensor | None, rooms: Rooms) -> torch.Tensor:
    """Return the weights of `logits` [sequences, heads, longest], which lie in the rooms; a sink's are last."""
    sequences, heads, longest = logits.shape
    if sinks is None:
        return torch.softmax(logits, dim=-1, out=laid_out(rooms.weights, sequences, heads, longest))
    joined = laid_out(rooms.weights, sequences, heads, longest + 1)
    joined[:, :, :longest].copy_(logits)
    joined[:, :, longest].copy_(sinks)
    return torch.softmax(joined, dim=-1, out=laid_out(rooms.logits, sequences, heads, longest + 1))


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
    heads, cached = asked.shape[1], step.cache.layer(layer)
    for run in runs_of(step.batch, cached[0].shape[2]):
        count = run.high - run.low
        keys, values = (each[run.slot : run.slot + count, :, : run.longest].to(asked.dtype) for each in cached)
        groups = keys.shape[1]
        rows = asked[run.low : run.high].view(count, groups, heads // groups, -1)
        seen = seen_tokens(step.batch, run, window)
        mask = None if seen is None else seen[:, None, None].expand(-1, -1, heads // groups, -1)
        if sinks is not None:
            columns = sinks.reshape(groups, heads // groups)[:, :, None]
            found = attention_with_sinks(rows, keys, values, mask, scaling, columns)
        else:
            found = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scaling)
        out[run.low : run.high] = found.reshape(count, heads, -1)  # kernels lay it out in their own ways
