"""Llama 4 (text part): chunked attention with some layers of full attention, sparse layers in turn with dense ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention
from moiety.model.config import MAX_LAYERS, num_layers
from moiety.model.families.experts import feed_forwards, routed_experts
from moiety.model.families.grouped_query import heads, window_size, windowed
from moiety.model.feed_forward import MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config


def llama4(config: Config) -> list[Block]:
    """Return the layers of a `llama4_text` model; its norms on queries and keys have no weights."""
    bias = config.flag("attention_bias", default=False)
    attention = GroupedQueryAttention(**heads(config, num_kv_heads=8, head_dim=128), qkv_bias=bias, output_bias=bias)
    attentions = windowed(attention, window_size(config, "attention_chunk_size", default=8192), _chunked(config))
    mixture = MoeFeedForward(
        **routed_experts(config, width_keys=("intermediate_size",)),
        shared_intermediate_size=config.integer("intermediate_size"),
    )
    parts = feed_forwards(config, _sparse(config), mixture, width_key="intermediate_size_mlp")
    return [Block(attention=attention, feed_forward=part) for attention, part in zip(attentions, parts, strict=True)]


def _chunked(config: Config) -> list[bool]:
    layers = num_layers(config)
    types = config.names("layer_types", allowed={"full_attention", "chunked_attention"}, length=layers)
    if types:
        return [kind == "chunked_attention" for kind in types]
    with_rope = config.integers("no_rope_layers", below=2, length=layers)
    interval = config.integer("no_rope_layer_interval", maximum=MAX_LAYERS, default=4)
    return [bool(flag) for flag in with_rope] or [(index + 1) % interval != 0 for index in range(layers)]


def _sparse(config: Config) -> list[bool]:
    layers = num_layers(config)
    if config.has("moe_layers"):
        named = set(config.integers("moe_layers", below=layers))
        return [index in named for index in range(layers)]
    step = config.integer("interleave_moe_layer_step", maximum=MAX_LAYERS, default=1)
    return [(index + 1) % step == 0 for index in range(layers)]
