"""StepFun's Step-3: one key/value head, queries of a low rank, experts in the layers that a text lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention
from moiety.model.config import MAX_EXPERTS, num_layers
from moiety.model.families.experts import feed_forwards
from moiety.model.feed_forward import MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config


def step3(config: Config) -> list[Block]:
    """Return the layers of a `step3_text` model, the language model of `step3_vl`."""
    heads, groups = config.integer("num_attention_heads"), config.integer("num_attention_groups")
    if heads % groups:
        raise config.error(f"must divide num_attention_heads={heads}", "num_attention_groups")
    attention = GroupedQueryAttention(
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=config.integer("head_dim"),
        q_lora_rank=config.integer("share_q_dim"),
    )
    num_experts = config.integer("moe_num_experts", maximum=MAX_EXPERTS)
    mixture = MoeFeedForward(
        num_experts=num_experts,
        top_k=config.integer("moe_top_k", maximum=num_experts),
        expert_intermediate_size=config.integer("moe_intermediate_size"),
        shared_intermediate_size=config.integer("share_expert_dim", minimum=0),
    )
    parts = feed_forwards(config, _sparse(config), mixture)
    return [Block(attention=attention, feed_forward=part) for part in parts]


def _sparse(config: Config) -> list[bool]:
    """Say for each layer whether it is sparse: those of `moe_layers_enum` ("4,5,6"), all but the first without it."""
    layers = num_layers(config)
    listed = config.text("moe_layers_enum")
    if listed is None:
        return [index > 0 for index in range(layers)]
    numbers = listed.split(",")
    index_of = {str(index): index for index in range(layers)}
    if not {number.strip() for number in numbers} <= index_of.keys():
        raise config.error(f"must be numbers of layers from 0 to {layers - 1}, joined with commas", "moe_layers_enum")
    named = {index_of[number.strip()] for number in numbers}
    return [index in named for index in range(layers)]
