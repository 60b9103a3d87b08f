"""Dense decoders: Llama, Mistral, Qwen2 and Qwen3. Defaults are those of the `transformers` configuration classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention
from moiety.model.config import MAX_LAYERS, num_layers
from moiety.model.families.grouped_query import heads, window_size, windowed
from moiety.model.feed_forward import DenseFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config


def llama(config: Config) -> list[Block]:
    """Return the layers of a `llama` model (Llama 2 and 3)."""
    bias = config.flag("attention_bias", default=False)
    attention = GroupedQueryAttention(**heads(config), qkv_bias=bias, output_bias=bias)
    mlp_bias = config.flag("mlp_bias", default=False)
    return _blocks(config, [attention] * num_layers(config), mlp_bias=mlp_bias)


def mistral(config: Config) -> list[Block]:
    """Return the layers of a `mistral` model, all of them behind the sliding window if there is one."""
    layers = num_layers(config)
    attention = GroupedQueryAttention(**heads(config, num_kv_heads=8))
    return _blocks(config, windowed(attention, window_size(config, default=4096), [True] * layers))


def qwen2(config: Config) -> list[Block]:
    """Return the layers of a `qwen2` model, whose query, key and value projections have a bias."""
    return _blocks(config, qwen_windows(config, GroupedQueryAttention(**heads(config, num_kv_heads=32), qkv_bias=True)))


def qwen3(config: Config) -> list[Block]:
    """Return the layers of a `qwen3` model, with norms on queries and keys."""
    bias = config.flag("attention_bias", default=False)
    attention = GroupedQueryAttention(
        **heads(config, num_kv_heads=32, head_dim=128), qkv_bias=bias, output_bias=bias, qk_norm="head"
    )
    return _blocks(config, qwen_windows(config, attention))


def qwen_windows(config: Config, attention: GroupedQueryAttention) -> list[GroupedQueryAttention]:
    """Return the attention of each layer by Qwen's rule: windowed from `max_window_layers` on, or by `layer_types`."""
    layers = num_layers(config)
    used = config.flag("use_sliding_window", default=False)
    window = window_size(config, default=4096) if used else None
    types = config.names("layer_types", allowed={"full_attention", "sliding_attention"}, length=layers)
    first = config.integer("max_window_layers", minimum=0, maximum=MAX_LAYERS, default=28)
    inside = [kind == "sliding_attention" for kind in types] or [index >= first for index in range(layers)]
    return windowed(attention, window, inside)


def _blocks(config: Config, attentions: list[GroupedQueryAttention], *, mlp_bias: bool = False) -> list[Block]:
    dense = DenseFeedForward(intermediate_size=config.integer("intermediate_size"), bias=mlp_bias)
    return [Block(attention=attention, feed_forward=dense) for attention in attentions]
