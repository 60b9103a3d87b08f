"""Architectures whose layers the usual keys describe, and what their code adds to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moiety.model.model import Part

_BOTH: tuple[Part, ...] = ("attention", "feed_forward")


@dataclass(frozen=True, slots=True)
class Traits:
    """What a config.json of an architecture does not say, since every model of it has it."""

    qk_norm: Literal["none", "head", "full"] = "none"
    """Norms on queries and keys; with "none" those that `use_qk_norm` asks for, one of `head_dim` each."""
    num_norms: int = 2
    """Norm vectors of a layer without those behind its parts: one for each norm, and one more for each with a bias."""
    norms_behind: tuple[Part, ...] = ()
    """Parts of every layer that a norm comes behind."""
    norm_behind_experts: bool = False
    """Whether one comes behind a mixture of experts, though behind no dense part."""
    output_gate: bool = False
    sinks: bool = False
    router_bias: bool = False
    router_in_fp32: bool = False
    output_bias: bool = True
    """Whether the bias that the file asks for is on the output projection too."""
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    """What the architecture takes for keys that the file does not have."""


TRAITS: dict[str, Traits] = {
    "afmoe": Traits(
        qk_norm="head",
        norms_behind=_BOTH,
        output_gate=True,
        router_bias=True,
        defaults={
            "head_dim": 128,
            "num_dense_layers": 1,
            "num_shared_experts": 2,
            "sliding_window": 1024,
            "sliding_window_pattern": 4,
        },
    ),
    "axk1": Traits(
        norm_behind_experts=True,
        defaults={
            "kv_lora_rank": 512,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
            "n_group": 8,
            "topk_group": 4,
        },
    ),
    # Ling and Ring of inclusionAI; their code is in their repositories
    "bailing_moe": Traits(),
    "bailing_moe_v2": Traits(qk_norm="head", defaults={"num_shared_experts": 1}),
    "dots1": Traits(qk_norm="head", defaults={"num_key_value_heads": 32}),
    "ernie4_5_moe": Traits(
        router_bias=True,
        router_in_fp32=True,
        defaults={"num_key_value_heads": 4, "moe_layer_start_index": 1, "moe_num_shared_experts": 2},
    ),
    "exaone_moe": Traits(
        qk_norm="head",
        defaults={
            "num_key_value_heads": 32,
            "first_k_dense_replace": 1,
            "num_shared_experts": 1,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
        },
    ),
    "flex_olmo": Traits(qk_norm="full"),
    "glm4_moe_lite": Traits(
        defaults={
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
            "kv_lora_rank": 512,
            "q_lora_rank": 768,
            "qk_nope_head_dim": 192,
            "v_head_dim": 256,
        }
    ),
    "granitemoeshared": Traits(),
    # xAI's, as ported to transformers in hpcai-tech/grok-1
    "grok-1": Traits(norms_behind=_BOTH),
    "hunyuan_v1_moe": Traits(qk_norm="head", router_in_fp32=True, defaults={"num_shared_expert": 1}),
    "hy_v3": Traits(
        qk_norm="head",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "first_k_dense_replace": 1,
            "num_shared_experts": 1,
        },
    ),
    "phimoe": Traits(num_norms=4, defaults={"num_key_value_heads": 8}),
    "solar_open": Traits(
        output_bias=False, defaults={"num_key_value_heads": 8, "head_dim": 128, "n_shared_experts": 1}
    ),
}
