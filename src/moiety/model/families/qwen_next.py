"""Qwen's hybrids of gated delta nets and gated softmax attention: Qwen3-Next, Qwen3.5 and Qwen3.5-MoE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention, LinearAttention
from moiety.model.config import MAX_LAYERS, num_layers
from moiety.model.families.experts import feed_forwards, routed_experts, stepped_layers
from moiety.model.families.grouped_query import heads
from moiety.model.feed_forward import DenseFeedForward, FeedForward, MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.model.config import Config

_CHUNK_TOKENS = 64
"""Of `chunk_gated_delta_rule`, in transformers and in flash-linear-attention: no config says another number."""


def qwen3_next(config: Config) -> list[Block]:
    """Return the layers of a `qwen3_next` model."""
    parts = feed_forwards(config, stepped_layers(config), _mixture(config))
    return _blocks(config, parts, num_kv_heads=2)


def qwen3_5_moe(config: Config) -> list[Block]:
    """Return the layers of the text part of a `qwen3_5_moe` model, every one of which is sparse."""
    return _blocks(config, [_mixture(config)] * num_layers(config), num_kv_heads=2)


def qwen3_5(config: Config) -> list[Block]:
    """Return the layers of the text part of a dense `qwen3_5` model."""
    dense = DenseFeedForward(intermediate_size=config.integer("intermediate_size"))
    return _blocks(config, [dense] * num_layers(config), num_kv_heads=4)


def gated_delta_net(config: Config) -> LinearAttention:
    """Return the linear attention that the `linear_*` keys describe."""
    key_heads = config.integer("linear_num_key_heads", default=16)
    value_heads = config.integer("linear_num_value_heads", default=32)
    if value_heads % key_heads:
        raise config.error(
            f"linear_num_value_heads={value_heads} must be a multiple of the key heads, here {key_heads}",
            "linear_num_key_heads",
        )
    return LinearAttention(
        variant="gated_delta",
        num_key_heads=key_heads,
        num_value_heads=value_heads,
        key_head_dim=config.integer("linear_key_head_dim", default=128),
        value_head_dim=config.integer("linear_value_head_dim", default=128),
        conv_kernel_size=config.integer("linear_conv_kernel_dim", default=4),
        chunk_tokens=_CHUNK_TOKENS,
    )


def _mixture(config: Config) -> MoeFeedForward:
    shared = config.integer("shared_expert_intermediate_size", default=512)
    return MoeFeedForward(**routed_experts(config), shared_intermediate_size=shared, shared_gate=True)


def _blocks(config: Config, parts: Sequence[FeedForward], *, num_kv_heads: int) -> list[Block]:
    bias = config.flag("attention_bias", default=False)
    softmax = GroupedQueryAttention(
        **heads(config, num_kv_heads=num_kv_heads, head_dim=256),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
        output_gate=True,
    )
    linear = gated_delta_net(config)
    attentions: list[GroupedQueryAttention | LinearAttention] = [
        linear if is_linear else softmax for is_linear in _linear_layers(config)
    ]
    return [Block(attention=attention, feed_forward=part) for attention, part in zip(attentions, parts, strict=True)]


def _linear_layers(config: Config) -> list[bool]:
    layers = num_layers(config)
    types = config.names("layer_types", allowed={"full_attention", "linear_attention"}, length=layers)
    interval = config.integer("full_attention_interval", maximum=MAX_LAYERS, default=4)
    return [kind == "linear_attention" for kind in types] or [(index + 1) % interval != 0 for index in range(layers)]
