"""NVIDIA's hybrids of Mamba-2, attention and squared-ReLU networks: Nemotron-H, Nemotron Nano 2, Nemotron 3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.model.attention import GroupedQueryAttention, LinearAttention
from moiety.model.config import MAX_EXPERTS, MAX_LAYERS
from moiety.model.families.experts import routed_experts
from moiety.model.families.grouped_query import heads
from moiety.model.feed_forward import DenseFeedForward, MoeFeedForward
from moiety.model.model import Block

if TYPE_CHECKING:
    from moiety.model.config import Config

_OF_LETTER = {"M": "linear_attention", "*": "full_attention", "E": "moe", "-": "mlp"}
_OF_OLD_NAME = {"mamba": "linear_attention", "attention": "full_attention"}
_PATTERN = "hybrid_override_pattern"
_LISTS = ("layer_types", "layers_block_type")
_SILENT = "ME*-"
"""The layers of a file that names none."""


def nemotron_h(config: Config) -> list[Block]:
    """Return the layers of a `nemotron_h` model, each behind one norm: Mamba-2, attention, experts or one network."""
    kinds = _kinds(config)
    block_of = {"linear_attention": _mamba, "full_attention": _attention, "moe": _experts, "mlp": _network}
    blocks = {kind: block_of[kind](config) for kind in dict.fromkeys(kinds)}
    return [blocks[kind] for kind in kinds]


def _kinds(config: Config) -> list[str]:
    """Return the kind of each layer: from a list of names, else from a pattern of one letter a layer."""
    key = config.first_key(*_LISTS)
    stated = config.integer("num_hidden_layers", maximum=MAX_LAYERS, default=0) or None
    names = config.names(key, allowed={*_OF_LETTER.values(), *_OF_OLD_NAME}, length=stated)
    if names:
        return [_OF_OLD_NAME.get(name, name) for name in names]
    pattern = config.text(_PATTERN) or _SILENT
    if not set(pattern) <= _OF_LETTER.keys() or len(pattern) > MAX_LAYERS:
        raise config.error(f"must be at most {MAX_LAYERS:,} letters M (Mamba-2), * (attention), E or -", _PATTERN)
    if stated not in {None, len(pattern)}:
        raise config.error(f"must be the number of layers of {_PATTERN}, {len(pattern)}", "num_hidden_layers")
    return [_OF_LETTER[letter] for letter in pattern]


def _mamba(config: Config) -> Block:
    num_heads = config.integer("mamba_num_heads", default=128)
    groups_key = config.first_key("mamba_n_groups", "n_groups")
    groups = config.integer(groups_key, default=8)
    if num_heads % groups:
        raise config.error(f"must divide mamba_num_heads={num_heads}; it counts as {groups}", groups_key)
    mixer = LinearAttention(
        variant="mamba2",
        num_key_heads=groups,
        num_value_heads=num_heads,
        key_head_dim=config.integer("ssm_state_size", default=128),
        value_head_dim=config.integer("mamba_head_dim", default=64),
        conv_kernel_size=config.integer("mamba_d_conv", "conv_kernel", default=4),
        conv_bias=config.flag("mamba_conv_bias", "use_conv_bias", default=True),
        projection_bias=config.flag("use_bias", default=False),
        chunk_tokens=config.integer("mamba_chunk_size", "chunk_size", default=128),
    )
    return Block(attention=mixer, feed_forward=None, num_norms=1)


def _attention(config: Config) -> Block:
    """Return a layer of attention: its projections have no bias, and it sees all tokens, whatever the file says."""
    attention = GroupedQueryAttention(**heads(config, num_kv_heads=8, head_dim=128))
    return Block(attention=attention, feed_forward=None, num_norms=1)


def _experts(config: Config) -> Block:
    """Return a layer of experts without gates; in the latent, if any, only the routed ones work."""
    mixture = MoeFeedForward(
        **routed_experts(
            config,
            num_groups=config.integer("n_group", maximum=MAX_EXPERTS, default=1),
            top_k_groups=config.integer("topk_group", maximum=MAX_EXPERTS, default=1),
        ),
        shared_intermediate_size=config.integer("moe_shared_expert_intermediate_size", default=7688),
        shared_bias=config.flag("mlp_bias", default=False),
        gated=False,
        latent_size=config.optional_integer("moe_latent_size"),
    )
    return Block(attention=None, feed_forward=mixture, num_norms=1)


def _network(config: Config) -> Block:
    network = DenseFeedForward(
        intermediate_size=config.integer("intermediate_size", default=21504),
        bias=config.flag("mlp_bias", default=False),
        gated=False,
    )
    return Block(attention=None, feed_forward=network, num_norms=1)
