"""Grouped-query attention as the keys of a config.json give it, and the layers in which it sees only a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from moiety.model.config import MAX_POSITIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.model.attention import GroupedQueryAttention
    from moiety.model.config import Config


class Heads(TypedDict):
    """How many heads the queries and the keys and values have, and how wide each is."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


def heads(config: Config, *, num_kv_heads: int | None = None, head_dim: int | None = None) -> Heads:
    """Return the heads of grouped-query attention.

    `num_kv_heads` and `head_dim` are what the family takes where the file is silent; None stands for as many as
    query heads, and for `hidden_size / num_attention_heads`.
    """
    num_heads = config.integer("num_attention_heads")
    kv_heads = config.optional_integer("num_key_value_heads", default=num_kv_heads) or num_heads
    if num_heads % kv_heads:
        raise config.error(
            f"num_attention_heads={num_heads} must be a multiple of the key/value heads, here {kv_heads}",
            "num_key_value_heads",
        )
    width = config.integer("head_dim", default=head_dim or 0) or _even_head_dim(config, num_heads)
    return Heads(num_heads=num_heads, num_kv_heads=kv_heads, head_dim=width)


def _even_head_dim(config: Config, num_heads: int) -> int:
    hidden_size = config.integer("hidden_size")
    if hidden_size % num_heads:
        raise config.error(
            f"must divide hidden_size={hidden_size} where head_dim is not given",
            "num_attention_heads",
            remedy="add head_dim",
        )
    return hidden_size // num_heads


def window_size(config: Config, key: str = "sliding_window", *, default: int | None = None) -> int | None:
    """Return how many tokens a windowed layer sees: None where the file says null, `default` where it is silent."""
    return config.optional_integer(key, maximum=MAX_POSITIONS, default=default)


def windowed(
    attention: GroupedQueryAttention, window: int | None, in_window: Sequence[bool]
) -> list[GroupedQueryAttention]:
    """Return the attention of each layer: it sees `window` tokens where `in_window` says so, else all of them."""
    local = attention.model_copy(update={"sliding_window": window})
    return [local if inside else attention for inside in in_window]
