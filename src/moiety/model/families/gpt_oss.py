"""gpt-oss: sliding windows in turn with full attention, attention sinks, biases everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention
from moiety.model.config import num_layers
from moiety.model.families.experts import routed_experts
from moiety.model.families.grouped_query import heads, window_size, windowed
from moiety.model.feed_forward import MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config


def gpt_oss(config: Config) -> list[Block]:
    """Return the layers of a `gpt_oss` model; without `layer_types` the first layer is windowed, then every other."""
    bias = config.flag("attention_bias", default=True)
    attention = GroupedQueryAttention(
        **heads(config, num_kv_heads=8, head_dim=64), qkv_bias=bias, output_bias=bias, sinks=True
    )
    layers = num_layers(config)
    types = config.names("layer_types", allowed={"full_attention", "sliding_attention"}, length=layers)
    inside = [kind == "sliding_attention" for kind in types] or [index % 2 == 0 for index in range(layers)]
    mixture = MoeFeedForward(
        **routed_experts(config, width_keys=("intermediate_size",)), router_bias=True, expert_bias=True
    )
    return [
        Block(attention=part, feed_forward=mixture)
        for part in windowed(attention, window_size(config, default=128), inside)
    ]
