"""Tiny random models of every architecture that the run time is tested with, saved as checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

OVERFLOWING = 99
"""Token that `save_overflowing` is about."""
_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
_SHARED: dict[str, Any] = {
    "head_dim": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "mixtral-window": ("MixtralConfig", {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 7}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 64,
            "mlp_only_layers": [1],
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48},
    ),
    "deepseek_v2": ("DeepseekV2Config", _LATENT | {"n_group": 1, "topk_group": 1, "q_lora_rank": None}),
    "deepseek_v3": ("DeepseekV3Config", _LATENT | {"n_group": 2, "topk_group": 1}),
    "olmoe": ("OlmoeConfig", {"num_experts": 8, "num_experts_per_tok": 2}),
    "gpt_oss": (
        "GptOssConfig",
        {
            "head_dim": 16,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "glm4_moe": (
        "Glm4MoeConfig",
        {
            "head_dim": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "attention_bias": True,
            "use_qk_norm": True,
        },
    ),
}
"""By name: the class of the configuration and what it has beside the common sizes."""
FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "tied_qwen2": ("Qwen2MoeConfig", {**CONFIGS["qwen2_moe"][1], "tie_word_embeddings": True}),
    "flex_olmo": ("FlexOlmoConfig", {"num_key_value_heads": 4, "num_experts": 9, "num_experts_per_tok": 2}),
    "solar_open": (
        "SolarOpenConfig",
        {
            "head_dim": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "minimax_m2": (
        "MiniMaxM2Config",
        {"head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 48},
    ),
    "afmoe": (
        "AfmoeConfig",
        {
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "num_dense_layers": 1,
            "num_shared_experts": 1,
            "layer_types": ["full_attention"] * 3,
        },
    ),
    "axk1": ("AXK1Config", _LATENT | {"n_group": 1, "topk_group": 1}),
    "dots1": ("Dots1Config", _SHARED | {"n_routed_experts": 8, "n_group": 1, "topk_group": 1}),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 48, "moe_num_shared_experts": 1},
    ),
    "exaone_moe": ("ExaoneMoeConfig", _SHARED | {"num_experts": 8, "num_shared_experts": 1, "sliding_window": 7}),
    "glm4_moe_lite": ("Glm4MoeLiteConfig", _LATENT | {"n_group": 1, "topk_group": 1}),
    "hunyuan_v1_moe": ("HunYuanMoEV1Config", {"head_dim": 16, "num_experts": 8, "moe_topk": 2}),
    "hy_v3": ("HYV3Config", _SHARED | {"num_experts": 8, "num_shared_experts": 1}),
}
"""Others, that only some divisions suit."""


def save_config(name: str, folder: Path) -> Path:
    """Save the configuration of a model of `CONFIGS` in `folder`, without weights, and return the folder."""
    kind, own = CONFIGS[name]
    getattr(transformers, kind)(**{**_COMMON, **own}).save_pretrained(folder)
    return folder


def save_checkpoint(name: str, folder: Path, *, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    """Save a random model of `CONFIGS` or `FURTHER` in `folder`, and return the folder.

    The same name gives the same weights.
    """
    kind, own = (CONFIGS | FURTHER)[name]
    config = getattr(transformers, kind)(**{**_COMMON, **own, **changes})
    generator = torch.Generator().manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if parameter.dim() == 1 else 0.1 * noise)
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def save_overflowing(folder: Path) -> Path:
    """Save a random Qwen3-MoE in FP16 that computes values beyond FP16 of `OVERFLOWING`, and of no other token.

    Its embedding alone has the column that the first layer's values grow with.
    """
    save_checkpoint("qwen3_moe", folder, dtype=torch.float16)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][:, 0] = 0
    tensors["model.embed_tokens.weight"][OVERFLOWING, 0] = 1000
    tensors["model.layers.0.self_attn.v_proj.weight"][:, 0] = 60_000
    save_file(tensors, file, {"format": "pt"})
    return folder


def reference_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:  # noqa: ANN401 - transformers' class
    """Return transformers' own model of a checkpoint, in one process."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def greedy_continuation(model: Any, prompt: list[int], num_tokens: int) -> list[int]:  # noqa: ANN401 - as above
    """Return the most likely tokens after a prompt, as transformers' `generate` finds them."""
    whole = model.generate(
        torch.tensor([prompt]), max_new_tokens=num_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return whole[0, len(prompt) :].tolist()
