"""Multi-head latent attention while decoding: on the cached latents themselves, which are never expanded.

The expansion of keys is absorbed into the query and that of values into the output (DeepSeek-V2, arXiv 2405.04434,
section 2.1.2): q . (W_k c) = (W_k^T q) . c, and the sum of p (W_v c) is W_v times the sum of p c. A step then reads a
latent per cached token in place of making keys and values of every head from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import softmax

from moiety.runtime.arena.trace import called
from moiety.runtime.expansion import whole
from moiety.runtime.model.cached_rows import cached_runs, hide, laid_out, rooms_for, runs_of, seen_tokens

if TYPE_CHECKING:
    from moiety.runtime.model.cached_rows import Rooms
    from moiety.runtime.model.kv_cache import CachedStep
    from moiety.runtime.telemetry import Recorder


def latent_decode(
    module: Any,  # noqa: ANN401 - transformers' attention
    step: CachedStep,
    query: torch.Tensor,
    *,
    scaling: float,
    window: int | None,
    recorder: Recorder,
) -> torch.Tensor:
    """Return the attention of one new token of every sequence, [sequences, heads, value width].

    `query` is [sequences, heads, nope + rope]; the step's cache holds latents [.., rank] and rotary keys [.., rope].
    `module` has the expansion `kv_b_proj` of the rank's heads, keys before values. CPUs sum up in FP32.
    """
    heads, nope, layer = query.shape[1], module.qk_nope_head_dim, module.layer_idx
    expansion = whole(module.kv_b_proj.weight).view(heads, nope + module.v_head_dim, -1)  # [heads, nope + value, rank]
    to_latent, to_value = expansion[:, :nope], expansion[:, nope:]
    asked = torch.bmm(query[..., :nope].transpose(0, 1), to_latent).transpose(0, 1).contiguous()
    recorder.mark("kv_absorb", layer)
    turned = query[..., nope:].contiguous()
    if query.device.type == "cpu":
        wide = asked.float()
        found = torch.empty_like(wide)
        called(_sum_up, step, layer, wide, turned.float(), scaling, window, rooms_for(step, layer, heads), found)
        summed = found.to(query.dtype)
    else:
        summed = torch.empty_like(asked)
        _sum_up_by_library(step, layer, asked, turned, scaling, window, summed)
    return torch.bmm(summed.transpose(0, 1), to_value.transpose(1, 2)).transpose(0, 1).contiguous()


def _sum_up(  # noqa: PLR0913, PLR0917 - tensors that a tape moves stand among the arguments
    step: CachedStep,
    layer: int,
    asked: torch.Tensor,
    turned: torch.Tensor,
    scaling: float,
    window: int | None,
    rooms: Rooms,
    summed: torch.Tensor,
) -> None:
    """Fill `summed` [sequences, heads, rank] with the weighted sums of the cached latents.

    `asked` [sequences, heads, rank] is the query for latents, `turned` [sequences, heads, rope] for rotary keys.
    """
    heads = asked.shape[1]
    for run, cached_latents, cached_rotary in cached_runs(step, layer, rooms):
        latents, rotary, part = cached_latents[:, 0], cached_rotary[:, 0], slice(run.low, run.high)
        logits, weights = (
            laid_out(each, run.high - run.low, heads, run.longest) for each in (rooms.logits, rooms.weights)
        )
        torch.baddbmm(logits, asked[part], latents.transpose(1, 2), beta=0, alpha=scaling, out=logits)
        torch.baddbmm(logits, turned[part], rotary.transpose(1, 2), alpha=scaling, out=logits)
        hide(logits, step.batch, run.low, window, rooms)
        torch.softmax(logits, dim=-1, out=weights)
        torch.bmm(weights, latents, out=summed[part])


def _sum_up_by_library(
    step: CachedStep,
    layer: int,
    asked: torch.Tensor,
    turned: torch.Tensor,
    scaling: float,
    window: int | None,
    summed: torch.Tensor,
) -> None:
    """Fill `summed` as `_sum_up` does, by products in the queries' format."""
    cached = step.cache.layer(layer)
    for run in runs_of(step.batch, cached[0].shape[2]):
        rows, part = slice(run.slot, run.slot + run.high - run.low), slice(run.low, run.high)
        latents, rotary = (each[rows, 0, : run.longest].to(asked.dtype) for each in cached)
        logits = torch.bmm(asked[part], latents.transpose(1, 2)) + torch.bmm(turned[part], rotary.transpose(1, 2))
        logits = logits.float() * scaling
        seen = seen_tokens(step.batch, run, window)
        if seen is not None:
            logits = logits.masked_fill(~seen[:, None], -torch.inf)
        torch.bmm(softmax(logits, dim=-1).to(latents.dtype), latents, out=summed[part])
