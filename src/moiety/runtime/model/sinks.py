"""Attention with sinks: logits of no token, which take part in the softmax alone (gpt-oss; arXiv 2309.17453)."""

from __future__ import annotations

import torch
from torch.nn.functional import softmax


def attention_with_sinks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor | None,
    scaling: float,
    sinks: torch.Tensor,
) -> torch.Tensor:
    """Return attention whose softmax has one more logit that no value stands behind (arXiv 2309.17453).

    `sinks` is [heads] for queries of one sequence, or [groups, heads of a group, 1] for grouped ones.
    """
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = (each.repeat_interleave(repeat, dim=1) for each in (key, value))
    logits = torch.matmul(query, key.transpose(2, 3)) * scaling
    if seen is not None:
        logits = logits.masked_fill(~seen, torch.finfo(logits.dtype).min)
    column = sinks[:, None, None] if sinks.ndim == 1 else sinks
    joined = torch.cat([logits, column.expand(*logits.shape[:3], 1)], dim=-1)
    joined = joined - joined.max(dim=-1, keepdim=True).values
    return torch.matmul(softmax(joined, dim=-1)[..., :-1], value)
