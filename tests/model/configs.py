"""Random legal configs of every architecture that is read exactly, with any of the optional keys left out."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from moiety.model.families import FAMILIES

LINEAR = {"linear_attention", "full_attention"}
SLIDING = {"sliding_attention", "full_attention"}
LAYER_KINDS: dict[str, set[str]] = {
    "qwen2": SLIDING,
    "qwen3": SLIDING,
    "qwen2_moe": SLIDING,
    "gpt_oss": SLIDING,
    "qwen3_next": LINEAR,
    "qwen3_5_text": LINEAR,
    "qwen3_5_moe_text": LINEAR,
    "minimax": LINEAR,
    "llama4_text": {"chunked_attention", "full_attention"},
}
"""What `layer_types` may say, by architecture."""
OF_TEXT_PART = {"qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text", "llama4": "llama4_text"}
LATENT = {"axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_k2"}
GROUPED = {*LATENT, "dots1", "exaone_moe", "glm4_moe", "glm4v_moe_text", "nemotron_h", "solar_open"}
"""Architectures whose router may choose among groups of experts."""
EXPERTS_KEY = {
    **dict.fromkeys(GROUPED - {"exaone_moe"}, "n_routed_experts"),
    **dict.fromkeys(("afmoe", "exaone_moe", "flex_olmo", "hunyuan_v1_moe", "hy_v3", "olmoe"), "num_experts"),
    **dict.fromkeys(("qwen2_moe", "qwen3_next", "qwen3_5_moe_text"), "num_experts"),
    "ernie4_5_moe": "moe_num_experts",
}
"""Under which key a file has the number of experts; else `num_local_experts`."""
TOP_K_KEY = {"ernie4_5_moe": "moe_k", "hunyuan_v1_moe": "moe_topk"}
BIASED = {
    "dots1",
    "flex_olmo",
    "granitemoehybrid",
    "granitemoeshared",
    "hy_v3",
    "phimoe",
    "solar_open",
}
"""Of the architectures below, those with a bias in attention where the file asks for one."""
BY_USUAL_KEYS = {"afmoe", "axk1", "ernie4_5_moe", "exaone_moe", "glm4_moe_lite", "hunyuan_v1_moe", *BIASED}
"""Architectures whose files have few optional keys, so that only those are drawn."""
DENSE = {"llama", "mistral", "qwen2", "qwen3", "qwen3_5_text"}
GRANITE = {"granitemoe", "granitemoehybrid", "granitemoeshared"}
WIDTH_IS_EXPERTS = {"mixtral", "olmoe", "gpt_oss", "minimax", "minimax_m2", "llama4_text", *GRANITE}
WIDTH_IS_EXPERTS |= {"flex_olmo", "hunyuan_v1_moe", "phimoe"}
AS_MANY_KV_HEADS = {"llama", "olmoe", "afmoe", "flex_olmo", "hunyuan_v1_moe", *GRANITE}
"""Architectures that take as many key/value heads as query heads where the file is silent; others a divisor of 32."""

READ_AS_ANOTHER = {"minimax_m1", "minimax_text_01"}
"""Names of MiniMax's own repositories, whose configs `transformers` does not read."""
OF_THEIR_OWN = {"arctic", "bailing_moe", "bailing_moe_v2", "dbrx", "grok-1", "longcat_flash", "step3_text"}
"""Architectures that `transformers` has no code for, or no keys as published; `test_published.py` has their sizes."""
ANY_FAMILY = sorted(FAMILIES.keys() - READ_AS_ANOTHER - OF_THEIR_OWN)
"""Architectures that random configs are drawn of."""

width = st.integers(1, 48)
few = st.integers(1, 4)


@st.composite
def random_config(draw: st.DrawFn, model_type: str) -> dict[str, Any]:
    """Return a legal config of `model_type`, a wrapper around its text part where that is how it is published."""
    if model_type in OF_TEXT_PART:
        text = draw(random_config(OF_TEXT_PART[model_type]))
        return {"model_type": model_type, "text_config": text, "vision_config": {}}
    layers = draw(st.integers(1, 6))
    config = draw(_shape(model_type, layers)) | draw(_optional(model_type, layers))
    if model_type == "nemotron_h":
        config |= draw(_hybrid(layers))
    config |= _needed(model_type, config)
    config["model_type"] = model_type
    return config


def _needed(model_type: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the keys without which `transformers` builds no model, or none so small."""
    needed: dict[str, dict[str, Any]] = {
        "dots1": {"n_shared_experts": 2},
        "flex_olmo": {"pad_token_id": None},
        "granitemoehybrid": {"mamba_n_heads": config["num_attention_heads"]},
        "hunyuan_v1_moe": {"head_dim": 8},
    }
    return needed.get(model_type, {})


@st.composite
def _shape(draw: st.DrawFn, model_type: str, layers: int) -> dict[str, Any]:
    kv_heads, group = draw(few), draw(few)
    config: dict[str, Any] = {
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "hidden_size": kv_heads * group * 2 * draw(few),
        "vocab_size": draw(st.integers(2, 99)),
        "intermediate_size": draw(width),
    }
    if model_type == "llama4_text":
        config["intermediate_size_mlp"] = draw(width)
    if draw(st.booleans()):
        del config["num_key_value_heads"]
        if model_type not in AS_MANY_KV_HEADS:
            config |= {"num_attention_heads": 32, "hidden_size": 32 * 2 * draw(few)}
    if model_type not in DENSE:
        config |= draw(_experts(model_type))
    return config


@st.composite
def _experts(draw: st.DrawFn, model_type: str) -> dict[str, Any]:
    groups, size = draw(few), draw(few)
    chosen = draw(st.integers(1, groups))
    config: dict[str, Any] = {
        EXPERTS_KEY.get(model_type, "num_local_experts"): groups * size,
        TOP_K_KEY.get(model_type, "num_experts_per_tok"): draw(st.integers(1, chosen * size)),
    }
    if model_type in GROUPED:
        config |= {"n_group": groups, "topk_group": chosen}
    if model_type not in WIDTH_IS_EXPERTS:
        config["moe_intermediate_size"] = draw(width)
    return config


@st.composite
def _hybrid(draw: st.DrawFn, layers: int) -> dict[str, Any]:
    """Return Mamba-2's keys and the kind of each layer, as a pattern or by name, old or new."""
    groups = draw(few)
    config: dict[str, Any] = {"n_groups": groups, "mamba_num_heads": groups * draw(few)}
    if draw(st.booleans()):
        config["hybrid_override_pattern"] = draw(st.text("ME*-", min_size=layers, max_size=layers))
    else:
        names = ("linear_attention", "full_attention", "mamba", "attention", "moe", "mlp")
        config["layers_block_type"] = draw(st.lists(st.sampled_from(names), min_size=layers, max_size=layers))
    optional: dict[str, st.SearchStrategy[Any]] = {
        **dict.fromkeys(("mamba_head_dim", "ssm_state_size", "moe_latent_size"), width),
        "moe_shared_expert_intermediate_size": width,
        **dict.fromkeys(("use_bias", "use_conv_bias"), st.booleans()),
        "conv_kernel": few,
    }
    taken = draw(st.sets(st.sampled_from(sorted(optional))))
    return config | {key: draw(optional[key]) for key in sorted(taken)}


@st.composite
def _optional(draw: st.DrawFn, model_type: str, layers: int) -> dict[str, Any]:
    choices = dict(_everywhere(layers))
    kinds = LAYER_KINDS.get(model_type)
    if kinds:
        kind = st.sampled_from(sorted(kinds))
        choices["layer_types"] = st.lists(kind, min_size=layers, max_size=layers)
    if model_type in BY_USUAL_KEYS:
        choices = _usual(model_type, layers)
    elif model_type in {"llama", "olmoe", *LATENT, "granitemoe"}:
        del choices["head_dim"]
    taken = draw(st.sets(st.sampled_from(sorted(choices))))
    return {key: draw(choices[key]) for key in sorted(taken)}


def _everywhere(layers: int) -> dict[str, st.SearchStrategy[Any]]:
    flags = ("attention_bias", "mlp_bias", "qkv_bias", "tie_word_embeddings", "use_sliding_window")
    widths = (
        "kv_lora_rank",
        "q_lora_rank",
        "qk_nope_head_dim",
        "v_head_dim",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "shared_expert_intermediate_size",
    )
    counts = ("decoder_sparse_step", "interleave_moe_layer_step", "linear_conv_kernel_dim", "n_shared_experts")
    return {
        **dict.fromkeys(flags, st.booleans()),
        **dict.fromkeys(widths, width),
        **dict.fromkeys(counts, few),
        "head_dim": width.map(lambda half: 2 * half),
        "qk_rope_head_dim": width.map(lambda half: 2 * half),
        "first_k_dense_replace": st.integers(0, layers),
        "mlp_only_layers": st.lists(st.integers(0, layers - 1), unique=True),
        "max_position_embeddings": st.integers(1, 10**6),
    }


def _usual(model_type: str, layers: int) -> dict[str, st.SearchStrategy[Any]]:
    """Return the optional keys that a file of such an architecture may have."""
    choices = {key: _everywhere(layers)[key] for key in ("tie_word_embeddings", "max_position_embeddings")}
    if model_type in LATENT:
        widths = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim")
        choices |= dict.fromkeys(widths, width) | {"n_shared_experts": few}
    elif model_type == "hunyuan_v1_moe":
        choices["num_shared_expert"] = st.just(1)
    if model_type in BIASED:
        choices["attention_bias"] = st.booleans()
    choices |= {
        "afmoe": {"num_dense_layers": st.integers(0, layers), "num_shared_experts": st.integers(0, 3)},
        "dots1": {"first_k_dense_replace": st.integers(0, layers)},
        "ernie4_5_moe": {
            "moe_layer_start_index": st.integers(0, layers),
            "moe_layer_end_index": st.integers(-1, layers),
            "moe_layer_interval": few,
            "moe_num_shared_experts": st.integers(0, 3),
        },
        "exaone_moe": {"first_k_dense_replace": st.integers(0, layers), "num_shared_experts": few},
        "granitemoehybrid": {
            "layer_types": st.lists(st.sampled_from(sorted(LINEAR)), min_size=layers, max_size=layers),
            "shared_intermediate_size": width,
            "mamba_d_state": width,
            "mamba_conv_bias": st.booleans(),
        },
        "granitemoeshared": {"shared_intermediate_size": width},
        "hy_v3": {"num_shared_experts": few},
        "phimoe": {"lm_head_bias": st.booleans()},
    }.get(model_type, {})
    return choices
