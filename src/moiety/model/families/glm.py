"""GLM-4.x mixtures of experts: grouped-query attention, shared experts, dense first layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention
from moiety.model.config import MAX_EXPERTS
from moiety.model.families.experts import feed_forwards, late_layers, routed_experts, shared_width
from moiety.model.families.grouped_query import heads
from moiety.model.feed_forward import MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config


def glm4_moe(config: Config) -> list[Block]:
    """Return the layers of a `glm4_moe` model; its output projection never has a bias."""
    attention = GroupedQueryAttention(
        **heads(config, num_kv_heads=8),
        qkv_bias=config.flag("attention_bias", default=False),
        qk_norm="head" if config.flag("use_qk_norm", default=False) else "none",
    )
    mixture = MoeFeedForward(
        **routed_experts(
            config,
            num_groups=config.integer("n_group", maximum=MAX_EXPERTS, default=1),
            top_k_groups=config.integer("topk_group", maximum=MAX_EXPERTS, default=1),
        ),
        shared_intermediate_size=shared_width(config, default=1),
    )
    parts = feed_forwards(config, late_layers(config, default_dense=1), mixture)
    return [Block(attention=attention, feed_forward=part) for part in parts]
