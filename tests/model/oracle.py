"""What `transformers` builds from a config: the oracle of parameter counts, without memory for the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STANDS_FOR = {
    "glm4v_moe_text": "glm4_moe",
    "kimi_k2": "deepseek_v3",
    "qwen3_omni_moe_text": "qwen3_moe",
    "qwen3_vl_moe_text": "qwen3_moe",
}
"""Architectures whose code is not in `transformers` because it is that of another one."""


def configuration(config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - one of the many configuration classes
    """Return the configuration object of `transformers` for a config.json (of its text part), without quantisation."""
    text = dict(config.get("text_config", config))
    kept = {key: value for key, value in text.items() if not key.startswith("_") and key != "quantization_config"}
    model_type = kept.pop("model_type")
    return transformers.AutoConfig.for_model(STANDS_FOR.get(model_type, model_type), **kept)


def built_parameters(config: Mapping[str, Any]) -> int:
    """Return the number of parameters of the model that `transformers` builds."""
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(configuration(config))
    return sum(parameter.numel() for parameter in built.parameters())
