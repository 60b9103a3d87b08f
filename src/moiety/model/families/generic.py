"""A decoder of unknown architecture, read by the keys that most configurations share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from moiety.model.attention import Attention, GroupedQueryAttention
from moiety.model.config import MAX_EXPERTS, MAX_LAYERS, num_layers
from moiety.model.families.deepseek import latent_attention
from moiety.model.families.experts import (
    NUM_EXPERTS_KEYS,
    feed_forwards,
    late_layers,
    routed_experts,
    stepped_layers,
)
from moiety.model.families.grouped_query import heads, window_size
from moiety.model.families.qwen_next import gated_delta_net
from moiety.model.feed_forward import DenseFeedForward, FeedForward, MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config

_WINDOWED = {"sliding_attention", "chunked_attention", "local_attention"}
_EXPERT_WIDTH_KEYS = (
    "moe_intermediate_size",
    "expert_intermediate_size",
    "expert_ffn_hidden_size",
    "intermediate_size",
)
_SHARED_WIDTH_KEYS = (
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "shared_intermediate_size",
)
_SHARED_NUMBER_KEYS = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
_OTHER_LAYERS_KEYS = (
    "hybrid_override_pattern",
    "layers_block_type",
    "block_configs",
    "ssm_cfg",
    "mamba_d_state",
    "linear_attn_config",
    "routed_expert_hidden_size",
    "moe_latent_size",
)


def generic(config: Config) -> list[Block]:
    """Return the layers of a decoder with latent, grouped-query or gated delta attention, dense or with experts.

    Raises InputError where a key shows that the layers are of other kinds (state-space, experts on a narrower
    hidden state, or each layer of its own shape), since the usual keys would then give a wrong size.
    """
    for key in _OTHER_LAYERS_KEYS:
        if config.has(key):
            rule = "only layers of attention followed by a gated feed-forward part of the model's width can be planned"
            raise config.error(rule, key)
    return [
        Block(attention=attention, feed_forward=part)
        for attention, part in zip(_attentions(config), _feed_forwards(config), strict=True)
    ]


def described(blocks: list[Block]) -> str:
    """Say in a few words as what the layers were read."""
    kinds = {"gqa": "grouped-query", "mla": "latent", "linear": "gated delta"}
    attentions = " and ".join(dict.fromkeys(kinds[block.attention.kind] for block in blocks if block.attention))
    sparse = sum(block.moe is not None for block in blocks)
    return f"{attentions} attention, {sparse} sparse and {len(blocks) - sparse} dense gated feed-forward layers"


def _attentions(config: Config) -> list[Attention]:
    layers = num_layers(config)
    if config.has("kv_lora_rank"):
        return [latent_attention(config)] * layers
    softmax = _softmax(config)
    kinds = config.names("layer_types", length=layers)
    window = window_size(config, config.first_key("sliding_window", "attention_chunk_size"))
    if not kinds:
        used = config.flag("use_sliding_window", default=True)
        return [softmax.model_copy(update={"sliding_window": window if used else None})] * layers
    local = softmax.model_copy(update={"sliding_window": window})
    of_kind: dict[str, Attention] = {kind: local if kind in _WINDOWED else softmax for kind in kinds}
    if "linear_attention" in of_kind and config.has("linear_num_value_heads"):
        of_kind["linear_attention"] = gated_delta_net(config)
    return [of_kind[kind] for kind in kinds]


def _softmax(config: Config) -> GroupedQueryAttention:
    bias = config.flag("attention_bias", "use_bias", default=False)
    norm: Literal["head", "none"] = "head" if config.flag("use_qk_norm", "qk_norm", default=False) else "none"
    return GroupedQueryAttention(
        **heads(config), qkv_bias=config.flag("qkv_bias", default=bias), output_bias=bias, qk_norm=norm
    )


def _feed_forwards(config: Config) -> list[FeedForward]:
    layers = num_layers(config)
    if not config.has(*NUM_EXPERTS_KEYS):
        return [DenseFeedForward(intermediate_size=config.integer("intermediate_size"))] * layers
    return feed_forwards(config, _sparse(config), _mixture(config))


def _mixture(config: Config) -> MoeFeedForward:
    width = config.integer(*_EXPERT_WIDTH_KEYS)
    shared = config.integer(*_SHARED_NUMBER_KEYS, minimum=0, maximum=MAX_EXPERTS, default=0) * width
    return MoeFeedForward(
        **routed_experts(
            config,
            width_keys=_EXPERT_WIDTH_KEYS,
            num_groups=config.integer("n_group", maximum=MAX_EXPERTS, default=1),
            top_k_groups=config.integer("topk_group", maximum=MAX_EXPERTS, default=1),
        ),
        shared_intermediate_size=config.integer(*_SHARED_WIDTH_KEYS, minimum=0, default=shared),
    )


def _sparse(config: Config) -> list[bool]:
    layers = num_layers(config)
    kinds = config.names("mlp_layer_types", allowed={"dense", "sparse"}, length=layers)
    if kinds:
        return [kind == "sparse" for kind in kinds]
    first = config.integer("moe_layer_start_index", minimum=0, maximum=MAX_LAYERS, default=0)
    late = late_layers(config, default_dense=first)
    return [both == (True, True) for both in zip(late, stepped_layers(config), strict=True)]
