"""Attention on cached latents is attention on the keys and values that they expand to."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from moiety.runtime.model.batch import Segment, packed
from moiety.runtime.model.kv_cache import CachedStep, KvCache
from moiety.runtime.model.latent_attention import latent_decode
from moiety.runtime.telemetry import Silent


@given(
    sequences=st.integers(1, 4),
    heads=st.integers(1, 3),
    tokens=st.integers(1, 9),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(1, 7)),
    seed=st.integers(0, 99),
    is_masked=st.booleans(),
)
def test_absorbed_attention_is_expanded_attention(
    sequences: int, heads: int, tokens: int, sizes: tuple[int, int, int, int], seed: int, *, is_masked: bool
) -> None:
    nope, rope, width, rank = sizes
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    expansion = torch.nn.Linear(rank, heads * (nope + width), bias=False)
    expansion.weight = torch.nn.Parameter(drawn(heads * (nope + width), rank))
    module = SimpleNamespace(kv_b_proj=expansion, qk_nope_head_dim=nope, v_head_dim=width, layer_idx=0)
    query, latents = drawn(sequences, heads, nope + rope), drawn(sequences, tokens, rank)
    rotary = drawn(sequences, tokens, rope)
    lengths = torch.randint(1, tokens + 1, (sequences, 1, 1), generator=generator)
    ends = lengths.flatten() if is_masked else torch.full((sequences,), tokens)
    ends[0] = tokens
    seen = torch.arange(tokens).expand(sequences, 1, tokens) < ends[:, None, None]
    cache = KvCache(sequences, tokens, (0,))
    for slot in range(sequences):
        whole = packed([Segment(slot, 0, (0,) * tokens, emits=True)])
        cache.store(whole, 0, latents[slot][None, None], rotary[slot][None, None])
    batch = packed([Segment(slot, int(end) - 1, (0,), emits=True) for slot, end in enumerate(ends)])
    with torch.no_grad():
        found = latent_decode(module, CachedStep(batch, cache), query, scaling=0.7, window=None, recorder=Silent())
        expanded = expansion(latents).view(sequences, tokens, heads, nope + width).transpose(1, 2)
        keys = torch.cat([expanded[..., :nope], rotary[:, None].expand(-1, heads, -1, -1)], dim=-1)
        mask = seen[:, None].expand(-1, heads, -1, -1)
        expected = scaled_dot_product_attention(
            query[:, :, None], keys, expanded[..., nope:], attn_mask=mask, scale=0.7
        )[:, :, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # the softmax is taken in float32
