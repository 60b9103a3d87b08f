"""Models whose keys or code `transformers` does not have as published: their sizes as their makers state them."""

from __future__ import annotations

from typing import Any

import pytest

from moiety.errors import InputError
from moiety.model.huggingface import model_from_config

_LING_1T: dict[str, Any] = {
    "model_type": "bailing_moe",
    "hidden_size": 8192,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "first_k_dense_replace": 4,
    "n_group": 8,
    "topk_group": 4,
    "vocab_size": 157184,
    "use_qk_norm": True,
    "use_qkv_bias": False,
}
_DBRX: dict[str, Any] = {
    "model_type": "dbrx",
    "d_model": 6144,
    "n_heads": 48,
    "n_layers": 40,
    "max_seq_len": 32768,
    "vocab_size": 100352,
    "attn_config": {"clip_qkv": 8, "kv_n_heads": 8, "rope_theta": 500000},
    "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
}
_ARCTIC: dict[str, Any] = {
    "model_type": "arctic",
    "hidden_size": 7168,
    "intermediate_size": 4864,
    "num_hidden_layers": 35,
    "num_attention_heads": 56,
    "num_key_value_heads": 8,
    "num_local_experts": 128,
    "num_experts_per_tok": 2,
    "moe_layer_frequency": 1,
    "use_residual": True,
    "vocab_size": 32000,
}
_GROK_1: dict[str, Any] = {
    "model_type": "grok-1",
    "hidden_size": 6144,
    "intermediate_size": 32768,
    "num_hidden_layers": 64,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 131072,
}
_LONGCAT: dict[str, Any] = {
    "model_type": "longcat_flash",
    "hidden_size": 6144,
    "ffn_hidden_size": 12288,
    "num_layers": 28,
    "expert_ffn_hidden_size": 2048,
    "num_attention_heads": 64,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 512,
    "zero_expert_num": 256,
    "moe_topk": 12,
    "vocab_size": 131072,
}
_HUNYUAN_A13B: dict[str, Any] = {
    "model_type": "hunyuan_v1_moe",
    "hidden_size": 4096,
    "intermediate_size": 3072,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_experts": 64,
    "moe_topk": [8] * 32,
    "num_shared_expert": [1] * 32,
    "moe_intermediate_size": [3072] * 32,
    "vocab_size": 128167,
    "use_cla": False,
    "tie_word_embeddings": True,
}
_STEP_3: dict[str, Any] = {
    "model_type": "step3_text",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_attention_heads": 64,
    "num_attention_groups": 1,
    "num_hidden_layers": 61,
    "head_dim": 256,
    "share_q_dim": 2048,
    "share_expert_dim": 5120,
    "moe_intermediate_size": 5120,
    "moe_num_experts": 48,
    "moe_top_k": 3,
    "moe_layers_enum": ",".join(str(layer) for layer in range(4, 60)),
    "vocab_size": 128815,
}


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [
        pytest.param(_LING_1T, 1000e9, 50e9, id="Ling-1T"),
        pytest.param(_DBRX, 132e9, 36e9, id="DBRX"),
        pytest.param(_ARCTIC, 480e9, 17e9, id="Arctic"),
        pytest.param(_GROK_1, 314e9, 86e9, id="Grok-1"),
        pytest.param(_LONGCAT, 560e9, 27e9, id="LongCat-Flash"),
        pytest.param(_STEP_3, 316e9, 38e9, id="Step-3"),
        pytest.param(_HUNYUAN_A13B, 80e9, 13e9, id="Hunyuan-A13B"),
    ],
)
def test_a_published_model_has_its_published_size(config: dict[str, Any], total: float, active: float) -> None:
    model = model_from_config(config, name="model", source="config.json")
    assert model.num_parameters == pytest.approx(total, rel=0.01)
    assert model.num_active_parameters == pytest.approx(active, rel=0.03)
    assert not any("not known" in warning for warning in model.warnings)


def test_dbrx_has_the_parameters_that_transformers_builds_layer_by_layer() -> None:
    model = model_from_config(_DBRX, name="model", source="config.json")
    # Wqkv, out_proj, router, w1, v1 and w2 of 16 experts, two norms without bias; embedding, norm, head
    layer = 6144 * (6144 + 2 * 1024) + 6144**2 + 6144 * 16 + 3 * 16 * 10752 * 6144 + 2 * 6144
    assert model.num_parameters == 40 * layer + 2 * 100352 * 6144 + 6144


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (_HUNYUAN_A13B, {"moe_topk": [8] * 31 + [4]}, "moe_topk = .*must have the same number for all layers"),
        (_STEP_3, {"moe_layers_enum": "4,61"}, "moe_layers_enum = .*must be numbers of layers from 0 to 60"),
        (_STEP_3, {"num_attention_groups": 7}, "num_attention_groups = 7: must divide num_attention_heads=64"),
        (_HUNYUAN_A13B, {"use_cla": True}, "use_cla = True: cannot be planned yet"),
        (_DBRX, {"n_heads": 7}, "n_heads = 7: must divide d_model=6144"),
        (_DBRX, {"attn_config": {"kv_n_heads": 5}}, "attn_config.kv_n_heads = 5: must divide n_heads=48"),
        (
            _GROK_1,
            {"model_type": "x", "kv_channels": 128},
            "kv_channels = 128: cannot be planned yet: experts",
        ),
        (_GROK_1, {"model_type": "x", "layer_types": ["conv"] * 64}, "layer_types = .*must be a list of strings of"),
        (_GROK_1, {"model_type": "x", "layer_types": ["linear_attention"] * 64}, "linear attention of an unknown kind"),
        (_GROK_1, {"model_type": "x", "sliding_window_pattern": "LX"}, "sliding_window_pattern = LX: must be a num"),
    ],
)
def test_what_is_not_planned_is_refused_by_its_key(
    config: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        model_from_config(config | changes, name="model", source="config.json")


def test_a_pattern_of_letters_says_which_layers_see_a_window() -> None:
    config = _GROK_1 | {"model_type": "exaone_moe", "sliding_window": 128, "sliding_window_pattern": "LLLG"}
    config |= {"moe_intermediate_size": 64}
    layers = model_from_config(config, name="model", source="config.json").layers
    assert [getattr(layer.attention, "sliding_window", None) for layer in layers[:4]] == [128, 128, 128, None]
