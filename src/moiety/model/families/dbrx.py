"""Databricks' DBRX: grouped-query attention and sixteen wide experts, described in a part of the file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention
from moiety.model.config import MAX_EXPERTS, num_layers
from moiety.model.feed_forward import MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config


def dbrx(config: Config) -> list[Block]:
    """Return the layers of a `dbrx` model; defaults are those of `transformers`."""
    of_attention, of_experts = config.part("attn_config"), config.part("ffn_config")
    width, num_heads = config.integer("d_model", default=2048), config.integer("n_heads", default=16)
    num_kv_heads = of_attention.integer("kv_n_heads", default=1)
    if width % num_heads:
        raise config.error(f"must divide d_model={width}", "n_heads")
    if num_heads % num_kv_heads:
        raise of_attention.error(f"must divide n_heads={num_heads}", "kv_n_heads")
    num_experts = of_experts.integer("moe_num_experts", maximum=MAX_EXPERTS, default=4)
    mixture = MoeFeedForward(
        num_experts=num_experts,
        top_k=of_experts.integer("moe_top_k", maximum=num_experts, default=1),
        expert_intermediate_size=of_experts.integer("ffn_hidden_size", default=3584),
    )
    attention = GroupedQueryAttention(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=width // num_heads)
    return [Block(attention=attention, feed_forward=mixture)] * num_layers(config)
