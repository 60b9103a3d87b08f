"""Model FLOPs: what the mathematics of a token needs, whatever the strategy; the numerator of MFU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention, MultiHeadLatentAttention

if TYPE_CHECKING:
    from moiety.model.attention import Attention
    from moiety.model.model import Model


def model_flops_per_token(
    model: Model, *, context_tokens: float, emitted_share: float, training: bool = False
) -> float:
    """Return FLOPs per token: 2 per active parameter, the head for the share of tokens that emit one, and attention.

    `context_tokens` is how many tokens a token attends to on average. Training counts three times the forward pass
    (Chowdhery et al. 2022, PaLM, appendix B); recomputation does not count.
    """
    head = model.hidden_size * model.vocab_size
    layers = model.num_active_parameters - head
    attentions = (block.attention for block in model.layers if block.attention is not None)
    scores = sum(attention_flops_per_token(each, context_tokens) for each in attentions)
    forward = 2.0 * layers + 2.0 * head * emitted_share + scores
    return 3 * forward if training else forward


def attention_flops_per_token(attention: Attention, context_tokens: float) -> float:
    """Return the FLOPs of scores and weighted sum for one token (the absorbed form of MLA is not model work)."""
    if isinstance(attention, GroupedQueryAttention):
        seen = min(context_tokens, attention.sliding_window or context_tokens)
        return 4.0 * attention.num_heads * attention.head_dim * seen
    if isinstance(attention, MultiHeadLatentAttention):
        dims = attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim
        index = attention.indexer
        seen = min(context_tokens, index.top_k) if index else context_tokens
        picking = 2.0 * index.num_heads * (index.head_dim + 1) * context_tokens if index else 0.0
        return 2.0 * attention.num_heads * dims * seen + picking
    # a token changes the state and reads it; the delta rule first reads what there is to correct
    products = 3 if attention.variant == "gated_delta" else 2
    return 2.0 * products * attention.num_value_heads * attention.key_head_dim * attention.value_head_dim
