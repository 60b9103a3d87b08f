"""Tiny models of `transformers` with random weights, and their checkpoints in every way of storing them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.checkpoint.weights import WeightSource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
save_file = pytest.importorskip("safetensors.torch").save_file

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

HIDDEN_SIZE = 32
NUM_EXPERTS = 4
LAYER = "model.layers.1.mlp.experts"
"""The experts of a layer that is sparse in every architecture."""
_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2}
_LATENT = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "n_routed_experts": NUM_EXPERTS,
    "n_shared_experts": 1,
    "topk_group": 1,
    "moe_intermediate_size": 24,
}
_NARROW = {"num_experts": NUM_EXPERTS, "moe_intermediate_size": 24}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mixtral": {**_ATTENTION, "num_local_experts": NUM_EXPERTS},
    "qwen2_moe": {**_ATTENTION, **_NARROW, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {**_ATTENTION, **_NARROW, "head_dim": 16},
    "deepseek_v2": {**_LATENT, "n_group": 1},
    "deepseek_v3": {**_LATENT, "n_group": 2},
    "olmoe": {**_ATTENTION, "num_experts": NUM_EXPERTS, "eos_token_id": 0},
    "gpt_oss": {**_ATTENTION, "num_local_experts": NUM_EXPERTS, "head_dim": 16},
    "glm4_moe": {
        **_ATTENTION,
        "head_dim": 16,
        "n_routed_experts": NUM_EXPERTS,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
    },
}


@cache
def tiny_model(architecture: str, **changes: Any) -> Any:  # noqa: ANN401 - one of the many model classes
    """Return a model of two layers with random weights, biases and norms included."""
    common = {"hidden_size": HIDDEN_SIZE, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    settings = {**common, **ARCHITECTURES[architecture], "num_experts_per_tok": 2, "max_position_embeddings": 128}
    config = transformers.AutoConfig.for_model(architecture, **(settings | changes))
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(len(architecture))
    with torch.no_grad():
        for tensor in weights_of(model).values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


def weights_of(model: Any) -> dict[str, Any]:  # noqa: ANN401 - one of the many model classes
    """Return the model's parameters and persistent buffers by name."""
    return dict(model.state_dict())


def save_stacked(model: Any, folder: Path, changes: Mapping[str, Any] | None = None) -> None:  # noqa: ANN401
    """Save the weights under the model's own names, experts stacked, with `changes` (None takes a tensor out)."""
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    weights = weights_of(model) | dict(changes or {})
    save_file({name: each.contiguous() for name, each in weights.items() if each is not None}, _weights(folder))


def change_file(folder: Path, changes: Mapping[str, Any]) -> None:
    """Rewrite model.safetensors with other tensors (None takes one out)."""
    with pytest.importorskip("safetensors").safe_open(_weights(folder), "pt") as opened:
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    save_file({name: each for name, each in (weights | dict(changes)).items() if each is not None}, _weights(folder))


def source_of(folder: Path, model: Any) -> WeightSource:  # noqa: ANN401 - one of the many model classes
    """Return the checkpoint in the folder as weights of the model."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights_of(model).items()}
    return WeightSource(Checkpoint.open(folder), shapes)


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"
