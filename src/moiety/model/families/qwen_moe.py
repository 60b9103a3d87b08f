"""Qwen's mixtures of experts with softmax attention: Qwen2-MoE and Qwen3-MoE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention
from moiety.model.config import MAX_LAYERS, num_layers
from moiety.model.families.experts import feed_forwards, routed_experts, stepped_layers
from moiety.model.families.grouped_query import heads, window_size, windowed
from moiety.model.feed_forward import MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config


def qwen2_moe(config: Config) -> list[Block]:
    """Return the layers of a `qwen2_moe` model: a gated shared expert, a bias on queries, keys and values."""
    attention = GroupedQueryAttention(**heads(config, num_kv_heads=16), qkv_bias=config.flag("qkv_bias", default=True))
    layers = num_layers(config)
    used = config.flag("use_sliding_window", default=False)
    last = config.integer("max_window_layers", minimum=0, maximum=MAX_LAYERS, default=28)
    types = config.names("layer_types", allowed={"full_attention", "sliding_attention"}, length=layers)
    inside = [kind == "sliding_attention" for kind in types] or [
        index % 2 == 0 and index < last for index in range(layers)
    ]
    window = window_size(config, default=4096) if used else None
    mixture = MoeFeedForward(
        **routed_experts(config),
        shared_intermediate_size=config.integer("shared_expert_intermediate_size", default=5632),
        shared_gate=True,
    )
    return _blocks(config, windowed(attention, window, inside), mixture)


def qwen3_moe(config: Config) -> list[Block]:
    """Return the layers of a `qwen3_moe` model: no shared expert, norms on queries and keys."""
    bias = config.flag("attention_bias", default=False)
    attention = GroupedQueryAttention(**heads(config, num_kv_heads=4), qkv_bias=bias, output_bias=bias, qk_norm="head")
    used = config.flag("use_sliding_window", default=False)
    window = window_size(config, default=4096) if used else None
    attentions = windowed(attention, window, [True] * num_layers(config))
    return _blocks(config, attentions, MoeFeedForward(**routed_experts(config)))


def _blocks(config: Config, attentions: list[GroupedQueryAttention], mixture: MoeFeedForward) -> list[Block]:
    parts = feed_forwards(config, stepped_layers(config), mixture)
    return [Block(attention=attention, feed_forward=part) for attention, part in zip(attentions, parts, strict=True)]
