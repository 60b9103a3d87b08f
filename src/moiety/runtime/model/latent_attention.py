"""Multi-head latent attention while decoding: on the cached latents themselves, which are never expanded.

The expansion of keys is absorbed into the query and that of values into the output (DeepSeek-V2, arXiv 2405.04434,
section 2.1.2): q . (W_k c) = (W_k^T q) . c, and the sum of p (W_v c) is W_v times the sum of p c. A step then reads a
latent per cached token in place of making keys and values of every head from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moiety.runtime.arena.trace import called
from moiety.runtime.model.decode_attention import hide, mask_rooms, runs_of

if TYPE_CHECKING:
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
    `module` has the expansion `kv_b_proj` of the rank's heads, keys before values.
    """
    sequences, heads = query.shape[:2]
    nope, layer = module.qk_nope_head_dim, module.layer_idx
    expansion = module.kv_b_proj.weight.view(heads, nope + module.v_head_dim, -1)  # [heads, nope + value, rank]
    to_latent, to_value = expansion[:, :nope], expansion[:, nope:]
    asked = torch.bmm(query[..., :nope].transpose(0, 1), to_latent).transpose(0, 1).contiguous()
    recorder.mark("kv_absorb", layer)
    summed = torch.empty_like(asked)
    rooms = [torch.empty(sequences * heads * step.cache.capacity, device=query.device) for _ in range(2)]
    masks = mask_rooms(step, query.device)
    called(_sum_up, step, layer, asked, query[..., nope:].contiguous(), scaling, window, rooms, masks, summed)
    return torch.bmm(summed.transpose(0, 1), to_value.transpose(1, 2)).transpose(0, 1).contiguous()


def _sum_up(  # noqa: PLR0913, PLR0917 - tensors that a tape moves stand among the arguments
    step: CachedStep,
    layer: int,
    asked: torch.Tensor,
    turned: torch.Tensor,
    scaling: float,
    window: int | None,
    rooms: list[torch.Tensor],
    masks: list[torch.Tensor],
    summed: torch.Tensor,
) -> None:
    """Fill `summed` [sequences, heads, rank] with the weighted sums of the cached latents.

    `asked` [sequences, heads, rank] is the query for latents, `turned` [sequences, heads, rope] for rotary keys.
    """
    heads = asked.shape[1]
    for low, high, slot, longest in runs_of(step.batch.segments):
        latents, rotary = (each[slot : slot + high - low, 0, :longest] for each in step.cache.layer(layer))
        logits, weights = (each[: (high - low) * heads * longest].view(-1, heads, longest) for each in rooms)
        if asked.dtype == logits.dtype:
            torch.baddbmm(logits, asked[low:high], latents.transpose(1, 2), beta=0, alpha=scaling, out=logits)
            torch.baddbmm(logits, turned[low:high], rotary.transpose(1, 2), alpha=scaling, out=logits)
        else:
            found = asked[low:high] @ latents.transpose(1, 2) + turned[low:high] @ rotary.transpose(1, 2)
            logits.copy_(found.float() * scaling)
        hide(logits, step.batch, low, window, masks)
        torch.softmax(logits, dim=-1, out=weights)
        torch.bmm(weights.to(latents.dtype), latents, out=summed[low:high])
