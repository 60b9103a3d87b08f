"""A decoder of unknown architecture, read by the keys that most configurations share."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from moiety.model.families.traits import Traits
from moiety.model.feed_forward import DenseFeedForward, FeedForward, MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config

_WINDOWED = {"sliding_attention", "chunked_attention", "local_attention"}
_KINDS = {*_WINDOWED, "full_attention", "global_attention", "attention", "linear_attention"}
_UNGATED = {"relu2", "xielu", "gelu_new"}
"""Activations that no published model uses with a gate (Nemotron-4, Arcee; Apertus; Phi-1 and 2)."""
_PATTERN_KEYS = ("sliding_window_pattern", "global_attn_every_n_layers")
_GROUPS_KEYS = ("n_group", "num_expert_group")
_FIRST_SPARSE_KEYS = ("moe_layer_start_index", "num_dense_layers")
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
_NOT_PLANNED = {
    "hybrid_override_pattern": "layers of several kinds by a pattern",
    "layers_block_type": "layers of several kinds by name",
    "block_configs": "layers each of a shape of their own",
    "ssm_cfg": "state-space layers",
    "mamba_d_state": "state-space layers (Mamba)",
    "linear_attn_config": "Kimi delta attention",
    "layer_group_size": "linear attention in groups of layers (Bailing)",
    "conv_L_cache": "short convolutions in place of attention",
    "routed_expert_hidden_size": "experts on a narrower hidden state",
    "moe_latent_size": "experts on a narrower hidden state",
    "share_q_dim": "queries of a low rank before grouped-query attention",
    "use_cla": "keys and values that layers share (cross-layer attention)",
    "kv_channels": "experts in the attention (mixture of attention heads)",
    "hc_mult": "hyper-connections and compressed attention",
    "hidden_size_per_layer_input": "embeddings of each layer (Gemma 3n and 4)",
    "num_attention_heads_per_layer": "layers each with a number of heads of its own",
}
"""Keys that show layers of which the usual keys would give a wrong size, and what those are."""


def generic(config: Config, traits: Traits | None = None) -> list[Block]:
    """Return the layers of a decoder with latent, grouped-query or gated delta attention, dense or with experts.

    `traits` is what the code of its architecture adds, where that is known. Raises InputError where a key shows that
    the layers are of other kinds, since the usual keys would then give a wrong size.
    """
    known = traits or Traits()
    config = config.with_defaults(**known.defaults)
    for key, kind in _NOT_PLANNED.items():
        if config.has(key) and config.values[key] != 0:
            remedy = "plan it as a model of the nearest known architecture, under that model_type"
            raise config.error(f"cannot be planned yet: {kind}", key, remedy=remedy)
    parts = zip(_attentions(config, known), _feed_forwards(config, known), strict=True)
    return [_block(attention, part, known) for attention, part in parts]


def _block(attention: Attention, part: FeedForward, traits: Traits) -> Block:
    behind = traits.norms_behind
    if traits.norm_behind_experts and isinstance(part, MoeFeedForward):
        behind = (*behind, "feed_forward")
    norms = traits.num_norms + len(behind)
    return Block(attention=attention, feed_forward=part, num_norms=norms, norms_behind=behind)


def described(blocks: list[Block]) -> str:
    """Say in a few words as what the layers were read."""
    kinds = {"gqa": "grouped-query", "mla": "latent", "linear": "gated delta"}
    attentions = " and ".join(dict.fromkeys(kinds[block.attention.kind] for block in blocks if block.attention))
    sparse = sum(block.moe is not None for block in blocks)
    gated = all(block.feed_forward.gated for block in blocks if block.feed_forward)
    kind = "gated feed-forward" if gated else "feed-forward"
    return f"{attentions} attention, {sparse} sparse and {len(blocks) - sparse} dense {kind} layers"


def _attentions(config: Config, traits: Traits) -> list[Attention]:
    layers = num_layers(config)
    if config.has("kv_lora_rank"):
        return [latent_attention(config)] * layers
    softmax = _softmax(config, traits)
    kinds = config.names("layer_types", allowed=_KINDS, length=layers)
    window = window_size(config, config.first_key("sliding_window", "attention_chunk_size"))
    local = softmax.model_copy(update={"sliding_window": window})
    if not kinds:
        used = config.flag("use_sliding_window", default=True)
        return [local if used and inside else softmax for inside in _in_window(config)]
    of_kind: dict[str, Attention] = {kind: local if kind in _WINDOWED else softmax for kind in kinds}
    if "linear_attention" in of_kind:
        if not config.has("linear_num_value_heads"):
            raise config.error("cannot be planned yet: linear attention of an unknown kind", "layer_types")
        of_kind["linear_attention"] = gated_delta_net(config)
    return [of_kind[kind] for kind in kinds]


def _in_window(config: Config) -> list[bool]:
    """Say for each layer whether it sees a window: all but each n-th one where the file has a pattern, else all."""
    layers = num_layers(config)
    if isinstance(config.values.get("sliding_window_pattern"), str):
        letters = config.text("sliding_window_pattern") or ""
        if not letters or not set(letters) <= {"L", "G"}:
            raise config.error("must be a number or letters L (local) and G (global)", "sliding_window_pattern")
        return [letters[index % len(letters)] == "L" for index in range(layers)]
    step = config.integer(*_PATTERN_KEYS, maximum=MAX_LAYERS, default=MAX_LAYERS)
    return [(index + 1) % step != 0 for index in range(layers)]


def _softmax(config: Config, traits: Traits) -> GroupedQueryAttention:
    bias = config.flag("attention_bias", "use_bias", default=False)
    norm = traits.qk_norm
    if norm == "none" and config.flag("use_qk_norm", "qk_norm", default=False):
        norm = "head"
    return GroupedQueryAttention(
        **heads(config),
        qkv_bias=config.flag("qkv_bias", "use_qkv_bias", default=bias),
        output_bias=bias and traits.output_bias,
        qk_norm=norm,
        output_gate=traits.output_gate,
        sinks=traits.sinks,
    )


def _feed_forwards(config: Config, traits: Traits) -> list[FeedForward]:
    layers = num_layers(config)
    bias = config.flag("mlp_bias", default=False)
    if not config.has(*NUM_EXPERTS_KEYS):
        gated = config.text("hidden_act") not in _UNGATED
        width = config.integer("intermediate_size")
        return [DenseFeedForward(intermediate_size=width, bias=bias, gated=gated)] * layers
    mixture = _mixture(config, traits, shared_bias=bias)
    return feed_forwards(config, _sparse(config), mixture, dense_bias=bias)


def _mixture(config: Config, traits: Traits, *, shared_bias: bool) -> MoeFeedForward:
    width = config.integer(*_EXPERT_WIDTH_KEYS)
    each = config.integer(*_SHARED_WIDTH_KEYS, minimum=0, default=width)
    number = config.integer(*_SHARED_NUMBER_KEYS, minimum=0, maximum=MAX_EXPERTS, default=0)
    if config.has(*_SHARED_WIDTH_KEYS) and not config.has(*_SHARED_NUMBER_KEYS):
        number = 1
    return MoeFeedForward(
        **routed_experts(
            config,
            width_keys=_EXPERT_WIDTH_KEYS,
            num_groups=config.integer(*_GROUPS_KEYS, maximum=MAX_EXPERTS, default=1),
            top_k_groups=config.integer("topk_group", maximum=MAX_EXPERTS, default=1),
        ),
        shared_intermediate_size=number * each,
        shared_bias=shared_bias,
        router_bias=traits.router_bias,
        router_in_fp32=traits.router_in_fp32,
    )


def _sparse(config: Config) -> list[bool]:
    """Say for each layer whether it is sparse, by whichever of the rules in use the file has keys for."""
    layers = num_layers(config)
    first = config.integer(*_FIRST_SPARSE_KEYS, minimum=0, maximum=MAX_LAYERS, default=0)
    last = config.integer("moe_layer_end_index", minimum=-1, maximum=MAX_LAYERS, default=-1)
    interval = config.integer("moe_layer_interval", maximum=MAX_LAYERS, default=1)
    end = layers if last < 0 else last + 1
    between = [index < end and (index + 1) % interval == 0 for index in range(layers)]
    late = late_layers(config, default_dense=min(first, layers))
    return [all(each) for each in zip(late, between, stepped_layers(config), strict=True)]
