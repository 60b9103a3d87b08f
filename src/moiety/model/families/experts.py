"""The mixture of experts as the keys of a config.json give it, and the layers that hold one."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from moiety.model.config import MAX_EXPERTS, MAX_LAYERS, num_layers
from moiety.model.feed_forward import DenseFeedForward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.model.config import Config
    from moiety.model.feed_forward import FeedForward, MoeFeedForward

NUM_EXPERTS_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_k",
    "moe_top_k",
)


class RoutedExperts(TypedDict):
    """How many experts there are, how wide each is, how many a token goes to, and from how many groups."""

    num_experts: int
    top_k: int
    expert_intermediate_size: int
    num_groups: int
    top_k_groups: int


def routed_experts(
    config: Config,
    *,
    width_keys: tuple[str, ...] = ("moe_intermediate_size",),
    num_groups: int = 1,
    top_k_groups: int = 1,
) -> RoutedExperts:
    """Return the routed experts of one layer; their width is under one of `width_keys`."""
    num_experts = config.integer(*NUM_EXPERTS_KEYS, maximum=MAX_EXPERTS)
    top_k = config.integer(*TOP_K_KEYS)
    if top_k > num_experts:
        raise config.error(f"must not exceed the number of experts, {num_experts}", config.first_key(*TOP_K_KEYS))
    if num_experts % num_groups:
        raise config.error(f"must divide the number of experts, {num_experts}; it counts as {num_groups}", "n_group")
    if top_k_groups > num_groups or top_k > top_k_groups * (num_experts // num_groups):
        rule = f"must be at most n_group={num_groups} and leave room for a token's {top_k} experts"
        raise config.error(f"{rule}; it counts as {top_k_groups}", "topk_group")
    return RoutedExperts(
        num_experts=num_experts,
        top_k=top_k,
        expert_intermediate_size=config.integer(*width_keys),
        num_groups=num_groups,
        top_k_groups=top_k_groups,
    )


def shared_width(config: Config, *, default: int) -> int:
    """Return the width of the shared experts together: their number (null: none) times the routed experts' width."""
    number = config.optional_integer("n_shared_experts", minimum=0, maximum=MAX_EXPERTS, default=default) or 0
    return number * config.integer("moe_intermediate_size") if number else 0


def feed_forwards(
    config: Config,
    sparse: Sequence[bool],
    mixture: MoeFeedForward,
    *,
    width_key: str = "intermediate_size",
    dense_bias: bool = False,
) -> list[FeedForward]:
    """Return the feed-forward part of each layer: `mixture` where `sparse` says so, else a dense one.

    The width under `width_key` need not be there where every layer is sparse.
    """
    if all(sparse):
        return [mixture] * len(sparse)
    dense = DenseFeedForward(intermediate_size=config.integer(width_key), bias=dense_bias)
    return [mixture if is_sparse else dense for is_sparse in sparse]


def stepped_layers(config: Config) -> list[bool]:
    """Say for each layer whether it is sparse by Qwen's rule: each `decoder_sparse_step`-th but `mlp_only_layers`."""
    layers = num_layers(config)
    dense = set(config.integers("mlp_only_layers", below=layers))
    step = config.integer("decoder_sparse_step", maximum=MAX_LAYERS, default=1)
    return [index not in dense and (index + 1) % step == 0 for index in range(layers)]


def late_layers(config: Config, *, default_dense: int) -> list[bool]:
    """Say for each layer whether it is sparse by DeepSeek's rule: all but the first `first_k_dense_replace`.

    `moe_layer_freq` n keeps only every n-th of them sparse; a list of 0 and 1, or `mlp_layer_types`, says it layer by
    layer.
    """
    layers = num_layers(config)
    kinds = config.names("mlp_layer_types", allowed={"dense", "sparse"}, length=layers)
    if kinds:
        return [kind == "sparse" for kind in kinds]
    if isinstance(config.values.get("moe_layer_freq"), list):
        flags = config.integers("moe_layer_freq", below=2, length=layers)
        if not flags:
            raise config.error(f"must have one entry for each of the {layers} layers, but is empty", "moe_layer_freq")
        return [bool(flag) for flag in flags]
    first = config.integer("first_k_dense_replace", minimum=0, maximum=layers, default=min(default_dense, layers))
    frequency = config.integer("moe_layer_freq", maximum=MAX_LAYERS, default=1)
    return [index >= first and index % frequency == 0 for index in range(layers)]
