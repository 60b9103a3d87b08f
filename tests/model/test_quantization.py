"""Number formats of checkpoints, as published configs state them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from moiety.model.catalog import catalog_model_text
from moiety.model.huggingface import model_from_config

if TYPE_CHECKING:
    from moiety.model.model import Model

NVFP4 = {"num_bits": 4, "type": "float", "group_size": 16}
FP8 = {"num_bits": 8, "type": "float"}
INT4 = {"num_bits": 4, "type": "int", "group_size": 32}


def _groups(*weights: dict[str, Any]) -> dict[str, Any]:
    return {f"group_{index}": {"weights": each, "targets": ["Linear"]} for index, each in enumerate(weights)}


def _read(quantization: dict[str, Any] | None, **changes: object) -> Model:
    config = json.loads(catalog_model_text("deepseek-v3")) | {"quantization_config": quantization} | changes
    return model_from_config(config, name="model", source="config.json")


@pytest.mark.parametrize(
    ("quantization", "formats"),
    [
        (None, ("bf16", "bf16")),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ("fp8", "fp8")),
        ({"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"]}, ("fp8", "fp8")),
        ({"quant_method": "fp8", "modules_to_not_convert": ["layers.0.self_attn.kv_a_layernorm"]}, ("fp8", "fp8")),
        ({"quant_method": "fp8", "modules_to_not_convert": ["layers.0.self_attn.indexers_proj"]}, ("fp8", "fp8")),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}, ("bf16", "mxfp4")),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, ("int4", "int4")),
        ({"quant_method": "gptq", "bits": 8}, ("int8", "int8")),
        ({"quant_method": "awq", "bits": 4}, ("int4", "int4")),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, ("int4", "int4")),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, ("int8", "int8")),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, ("fp4", "fp4")),
        ({"quant_method": "modelopt", "config_groups": _groups(NVFP4), "ignore": ["*self_attn*"]}, ("bf16", "fp4")),
        ({"quant_method": "compressed-tensors", "config_groups": _groups(FP8)}, ("fp8", "fp8")),
        ({"quant_method": "compressed-tensors", "config_groups": _groups(INT4), "ignore": ["re:.*self_attn.*"]},
         ("bf16", "int4")),
        ({"format": "mxfp4-pack-quantized", "config_groups": _groups(NVFP4)}, ("mxfp4", "mxfp4")),
        ({"quant_method": "fp8", "moe_quant_algo": "NVFP4"}, ("fp8", "fp4")),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4"}}}, ("mxfp4", "mxfp4")),
    ],
)  # fmt: skip
def test_formats_of_dense_weights_and_experts(quantization: dict[str, Any] | None, formats: tuple[str, str]) -> None:
    model = _read(quantization)
    assert (model.weight_dtype, model.expert_dtype) == formats
    assert model.warnings == ()


@pytest.mark.parametrize(
    ("quantization", "in_blocks"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, True),
        ({"quant_method": "fp8"}, False),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["self_attn"]}, False),
        (None, False),
    ],
)
def test_dense_weights_with_a_scale_a_block_are_read_so(quantization: dict[str, Any] | None, in_blocks: bool) -> None:
    assert _read(quantization).block_scales is in_blocks


def test_two_groups_of_formats_are_read_with_a_warning() -> None:
    model = _read({"quant_method": "modelopt", "config_groups": _groups(FP8, NVFP4)})
    assert (model.weight_dtype, model.expert_dtype) == ("fp8", "fp4")
    assert model.warnings == ("quantization_config mixes fp4, fp8: experts taken as fp4, the rest as fp8",)


def test_an_unknown_method_is_read_as_unquantised_with_a_warning() -> None:
    model = _read({"quant_method": "magic"})
    assert (model.weight_dtype, model.expert_dtype) == ("bf16", "bf16")
    assert model.warnings == ("quantization_config: 'magic' is not known, weights are taken as bf16",)


@pytest.mark.parametrize(
    ("key", "name", "dtype"),
    [
        ("torch_dtype", "float16", "fp16"),
        ("dtype", "bfloat16", "bf16"),
        ("dtype", "torch.float32", "fp32"),
        ("torch_dtype", "float8_e4m3fn", "fp8"),
    ],
)
def test_the_format_of_unquantised_weights(key: str, name: str, dtype: str) -> None:
    assert _read(None, **{"torch_dtype": None, key: name}).weight_dtype == dtype


def test_an_unstated_format_is_assumed_with_a_warning() -> None:
    model = _read(None, torch_dtype=None)
    assert model.weight_dtype == "bf16"
    assert model.warnings == ("dtype is not stated: weights are taken as bf16",)


def test_the_format_of_a_wrapped_model_may_stand_outside_its_text_part() -> None:
    inner = json.loads(catalog_model_text("deepseek-v3"))
    outer = {"model_type": "wrapper", "text_config": inner, "quantization_config": inner.pop("quantization_config")}
    outer["dtype"] = inner.pop("torch_dtype")
    model = model_from_config(outer, name="model", source="config.json")
    assert (model.weight_dtype, model.expert_dtype) == ("fp8", "fp8")
