"""Multi-head latent attention while decoding: on the cached latents themselves, which are never expanded.

The expansion of keys is absorbed into the query and that of values into the output (DeepSeek-V2, arXiv 2405.04434,
section 2.1.2): q . (W_k c) = (W_k^T q) . c, and the sum of p (W_v c) is W_v times the sum of p c. A step then reads a
latent per cached token in place of making keys and values of every head from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import softmax

if TYPE_CHECKING:
    from moiety.runtime.telemetry import Recorder


def latent_decode(
    module: Any,  # noqa: ANN401 - transformers' attention
    query: torch.Tensor,
    latents: torch.Tensor,
    rotary: torch.Tensor,
    seen: torch.Tensor | None,
    *,
    scaling: float,
    recorder: Recorder,
) -> torch.Tensor:
    """Return the attention of one new token of every sequence, [sequences, heads, value width].

    `query` is [sequences, heads, nope + rope], `latents` [sequences, tokens, rank] and `rotary` [sequences, tokens,
    rope] are what the cache holds, `seen` [sequences, 1, tokens] which of them count (None: all). `module` has the
    expansion `kv_b_proj` of the rank's heads, keys before values.
    """
    heads, nope = query.shape[1], module.qk_nope_head_dim
    expansion = module.kv_b_proj.weight.view(heads, nope + module.v_head_dim, -1)  # [heads, nope + value, rank]
    to_latent, to_value = expansion[:, :nope], expansion[:, nope:]
    asked = torch.einsum("shn,hnr->shr", query[..., :nope], to_latent)
    recorder.mark("kv_absorb", module.layer_idx)
    logits = torch.matmul(asked, latents.transpose(1, 2)) + torch.matmul(query[..., nope:], rotary.transpose(1, 2))
    logits = logits.float() * scaling
    if seen is not None:
        logits = logits.masked_fill(~seen, torch.finfo(logits.dtype).min)
    summed = torch.matmul(softmax(logits, dim=-1).to(latents.dtype), latents)
    return torch.einsum("shr,hvr->shv", summed, to_value)
