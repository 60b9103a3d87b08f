"""IBM's Granite 4 hybrids: Mamba-2 or attention, then experts beside a shared network, in each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention, LinearAttention
from moiety.model.config import MAX_EXPERTS, num_layers
from moiety.model.families.experts import routed_experts
from moiety.model.families.grouped_query import heads
from moiety.model.feed_forward import DenseFeedForward, MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config
    from moiety.model.feed_forward import FeedForward

_LINEAR = {"mamba", "linear_attention"}
_KINDS = {*_LINEAR, "attention", "full_attention"}


def granitemoehybrid(config: Config) -> list[Block]:
    """Return the layers of a `granitemoehybrid` model; one without routed experts has the shared network alone."""
    layers = num_layers(config)
    bias = config.flag("attention_bias", default=False)
    softmax = GroupedQueryAttention(**heads(config), qkv_bias=bias, output_bias=bias)
    key = config.first_key("layer_types", "layers_block_type")
    kinds = config.names(key, allowed=_KINDS, length=layers) or ("mamba",) * layers
    mamba = _mamba(config) if _LINEAR & set(kinds) else None
    part = _feed_forward(config)
    return [Block(attention=mamba if kind in _LINEAR else softmax, feed_forward=part) for kind in kinds]


def _mamba(config: Config) -> LinearAttention:
    num_heads = config.integer("mamba_n_heads", default=128)
    inner = config.integer("mamba_expand", default=2) * config.integer("hidden_size")
    groups = config.integer("mamba_n_groups", default=1)
    if inner % num_heads or num_heads % groups:
        rule = f"must divide mamba_expand x hidden_size = {inner} and be a multiple of mamba_n_groups = {groups}"
        raise config.error(rule, "mamba_n_heads")
    return LinearAttention(
        variant="mamba2",
        num_key_heads=groups,
        num_value_heads=num_heads,
        key_head_dim=config.integer("mamba_d_state", default=256),
        value_head_dim=inner // num_heads,
        conv_kernel_size=config.integer("mamba_d_conv", default=4),
        conv_bias=config.flag("mamba_conv_bias", default=True),
        projection_bias=config.flag("mamba_proj_bias", default=False),
        chunk_tokens=config.integer("mamba_chunk_size", default=256),
    )


def _feed_forward(config: Config) -> FeedForward:
    shared = config.integer("shared_intermediate_size", default=1024)
    if not config.integer("num_local_experts", minimum=0, maximum=MAX_EXPERTS, default=8):
        return DenseFeedForward(intermediate_size=shared)
    experts = routed_experts(config, width_keys=("intermediate_size",))
    return MoeFeedForward(**experts, shared_intermediate_size=shared)
