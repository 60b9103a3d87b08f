"""MiniMax-01/M1, which puts lightning attention between layers of softmax attention, and MiniMax-M2, which does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention, LinearAttention
from moiety.model.config import num_layers
from moiety.model.families.experts import routed_experts
from moiety.model.families.grouped_query import heads, window_size
from moiety.model.feed_forward import MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config


def minimax(config: Config) -> list[Block]:
    """Return the layers of a `minimax` model; the first repositories say `attn_type_list` (0 linear, 1 softmax)."""
    softmax = GroupedQueryAttention(**heads(config, num_kv_heads=8))
    linear = LinearAttention(
        variant="lightning",
        num_key_heads=softmax.num_heads,
        num_value_heads=softmax.num_heads,
        key_head_dim=softmax.head_dim,
        value_head_dim=softmax.head_dim,
    )
    softmax = softmax.model_copy(update={"sliding_window": window_size(config)})
    attentions: list[GroupedQueryAttention | LinearAttention] = [
        linear if is_linear else softmax for is_linear in _linear_layers(config)
    ]
    mixture = MoeFeedForward(**routed_experts(config, width_keys=("intermediate_size",)))
    return [Block(attention=attention, feed_forward=mixture) for attention in attentions]


def minimax_m2(config: Config) -> list[Block]:
    """Return the layers of a `minimax_m2` model, whose norms on queries and keys span all heads."""
    attention = GroupedQueryAttention(
        **heads(config, num_kv_heads=8, head_dim=128),
        qk_norm="full" if config.flag("use_qk_norm", default=True) else "none",
    )
    mixture = MoeFeedForward(**routed_experts(config, width_keys=("intermediate_size",)))
    return [Block(attention=attention, feed_forward=mixture)] * num_layers(config)


def _linear_layers(config: Config) -> list[bool]:
    layers = num_layers(config)
    types = config.names("layer_types", allowed={"full_attention", "linear_attention"}, length=layers)
    if types:
        return [kind == "linear_attention" for kind in types]
    softmax = config.integers("attn_type_list", below=2, length=layers)
    return [not flag for flag in softmax] or [index % 2 == 1 for index in range(layers)]
