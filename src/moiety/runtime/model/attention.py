"""Attention in place of transformers' own functions: of a packed batch over the KV cache, and of whole rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from moiety.errors import InputError
from moiety.runtime.model.decode_attention import decode_attention
from moiety.runtime.model.latent_attention import latent_decode
from moiety.runtime.model.sinks import attention_with_sinks

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.runtime.model.kv_cache import CachedStep
    from moiety.runtime.telemetry import Recorder

PACKED, CAUSAL = "moiety-packed", "moiety-causal"
"""Under which the two functions are registered with transformers."""


def packed_attention(  # noqa: PLR0913 - the arguments are transformers'
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - masks follow from the batch
    *,
    scaling: float,
    step: CachedStep,
    recorder: Recorder,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Return the attention output of packed tokens, [1, tokens, heads, value width], each over its own sequence.

    `query` is [1, heads, tokens, width]. Keys and values of the sequences so far come from the step's cache, or from
    `key` and `value` where prompts are computed and it gives all that they see, packed (latent and windowed layers).
    `sliding_window` is how many tokens a query sees, itself included; `s_aux` [heads] are sink logits that take part in
    the softmax alone (gpt-oss).
    """
    layer = module.layer_idx
    assert isinstance(layer, int), "transformers numbers its layers"
    sinks = s_aux.to(query.dtype) if s_aux is not None else None
    kept = step.cache.window(layer)
    _check_window(kept, sliding_window, layer)
    if step.batch.is_decode:
        window = None if kept else sliding_window  # the cache has no more than a window
        if step.cache.is_latent(layer):
            asked = query[0].transpose(0, 1)
            decoded = latent_decode(module, step, asked, scaling=scaling, window=window, recorder=recorder)
        else:
            decoded = decode_attention(
                step,
                layer,
                query,
                scaling=scaling,
                window=window,
                sinks=sinks,
                value_width=value.shape[3],
            )
        recorder.mark("attention", layer)
        return decoded[None], None
    batch, cache = step.batch, step.cache
    parts: list[torch.Tensor] = []
    before = 0
    for segment, low in zip(batch.segments, batch.offsets, strict=False):
        new = query[:, :, low : low + len(segment.token_ids)]
        start = cache.num_before(segment, layer)
        if cache.gives_sequences(layer):
            end = before + start + len(segment.token_ids)
            keys, values = (each[:, :, before:end] for each in (key, value))
            before = end
        else:
            keys, values = (
                each[segment.slot : segment.slot + 1, :, : segment.end].to(query.dtype) for each in cache.layer(layer)
            )
        parts.append(_sequence(new, keys, values, start, scaling, sliding_window, sinks))
    out = torch.cat(parts, dim=2).transpose(1, 2)
    recorder.mark("attention", layer)
    return out, None


def causal_attention(  # noqa: PLR0913 - the arguments are transformers'
    module: torch.nn.Module,  # noqa: ARG001 - as above
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - every row is whole
    *,
    scaling: float,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Return the attention output of rows of equal length, [rows, tokens, heads, value width], without a cache.

    `query` is [rows, heads, tokens, width]; window and sinks are as for `packed_attention`. The kernels lay
    their output out as the queries lie: token by token it is what the output projection takes, and is kept once.
    """
    query = query.transpose(1, 2).contiguous().transpose(1, 2)
    sinks = s_aux.to(query.dtype) if s_aux is not None else None
    return _sequence(query, key, value, 0, scaling, sliding_window, sinks).transpose(1, 2).contiguous(), None


FUNCTIONS: dict[str, Callable[..., tuple[torch.Tensor, None]]] = {PACKED: packed_attention, CAUSAL: causal_attention}


def _sequence(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    start: int,
    scaling: float,
    window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Return the attention of sequences' tokens from `start` on, [sequences, heads, new, width]."""
    new, total = query.shape[2], key.shape[2]
    seen = None
    if (window is not None and window < total) or (start > 0 and new > 1):
        at = torch.arange(start, total, device=query.device)[:, None]
        to = torch.arange(total, device=query.device)[None]
        seen = to <= at
        if window is not None:
            seen &= to > at - window
    if sinks is not None:
        if seen is None and new > 1:
            seen = torch.ones(new, total, dtype=torch.bool, device=query.device).tril(total - new)
        return attention_with_sinks(query, key, value, seen, scaling, sinks)
    width, missing = value.shape[3], query.shape[3] - value.shape[3]
    out = scaled_dot_product_attention(
        query,
        key,
        pad(value, (0, missing)) if missing else value,  # FlashAttention knows one width; others write all scores
        attn_mask=seen,
        is_causal=seen is None and new > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[..., :width] if missing else out


def _check_window(kept: int | None, seen: int | None, layer: int) -> None:
    """Raise InputError where the cache keeps a window and the layer's tokens see another, or all."""
    if kept not in {None, seen}:
        rule = f"is planned, and transformers' attention sees {'all' if seen is None else seen}"
        remedy = f"give prompts that end within {kept} tokens"
        raise InputError(rule, field=f"sliding window of layer {layer}", value=kept, remedy=remedy)
