"""Decoders with grouped-query attention and a mixture of experts in every layer: Mixtral, OLMoE, Granite MoE."""

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


def mixtral(config: Config) -> list[Block]:
    """Return the layers of a `mixtral` model."""
    attention = GroupedQueryAttention(**heads(config, num_kv_heads=8))
    return _blocks(config, windowed(attention, window_size(config), [True] * num_layers(config)))


def olmoe(config: Config) -> list[Block]:
    """Return the layers of an `olmoe` model, whose norms on queries and keys span all heads."""
    bias = config.flag("attention_bias", default=False)
    attention = GroupedQueryAttention(**heads(config), qkv_bias=bias, output_bias=bias, qk_norm="full")
    return _blocks(config, [attention] * num_layers(config))


def granitemoe(config: Config) -> list[Block]:
    """Return the layers of a `granitemoe` model."""
    bias = config.flag("attention_bias", default=False)
    attention = GroupedQueryAttention(**heads(config), qkv_bias=bias, output_bias=bias)
    return _blocks(config, [attention] * num_layers(config))


def _blocks(config: Config, attentions: list[GroupedQueryAttention]) -> list[Block]:
    mixture = MoeFeedForward(**routed_experts(config, width_keys=("intermediate_size",)))
    return [Block(attention=attention, feed_forward=mixture) for attention in attentions]
