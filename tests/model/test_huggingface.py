"""Reading config.json: known architectures, unknown ones, wrappers, and what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.model.attention import GroupedQueryAttention, LinearAttention, MultiHeadLatentAttention
from moiety.model.catalog import catalog_model_text
from moiety.model.feed_forward import DenseFeedForward, MoeFeedForward
from moiety.model.huggingface import model_from_config
from moiety.model.model import Model
from tests.model.configs import ANY_FAMILY, random_config

IMPOSSIBLE: list[object] = [0, -1, 10**30, 1e30, math.nan, math.inf, -math.inf, 2.5, 64.0, "64", True, [64], {"a": 1}]
SIZES = ["hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
SIZES_OF = {
    "mixtral-8x7b": [*SIZES, "intermediate_size", "num_local_experts", "num_experts_per_tok"],
    "deepseek-v3": [
        *(key for key in SIZES if key != "num_key_value_heads"),
        *("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "intermediate_size"),
        *("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_group"),
    ],
    "qwen3-next-80b-a3b": [*SIZES, "head_dim", "linear_num_value_heads", "linear_key_head_dim", "num_experts"],
    "llama-3.1-8b": [*SIZES, "intermediate_size", "max_position_embeddings"],
}

words = st.text(st.characters(exclude_categories=[]), max_size=9)
"""Any text, lone surrogates too: JSON can spell them."""
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=8,
)


def _catalogue(name: str, **changes: object) -> dict[str, Any]:
    return json.loads(catalog_model_text(name)) | changes


def _read(config: dict[str, Any]) -> Model:
    return model_from_config(config, name="model", source="config.json")


def _outcome(config: dict[str, Any]) -> Model | InputError:
    try:
        return _read(config)
    except InputError as error:
        str(error).encode()  # a message must be fit to print
        return error


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in SIZES_OF.items() for key in keys])
@pytest.mark.parametrize("value", IMPOSSIBLE, ids=repr)
def test_an_impossible_size_is_refused_by_name(name: str, key: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        _read(_catalogue(name, **{key: value}))
    assert caught.value.field == key
    assert caught.value.source == "config.json"
    assert "must be a whole number from 1 to " in str(caught.value)


@pytest.mark.parametrize(
    "key", ["hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "num_local_experts"]
)
def test_a_missing_size_is_refused_by_name(key: str) -> None:
    config = _catalogue("mixtral-8x7b")
    del config[key]
    with pytest.raises(InputError, match="is missing") as caught:
        _read(config)
    assert caught.value.field in {key, "num_experts"}


@pytest.mark.parametrize(
    ("name", "changes", "field", "rule"),
    [
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "num_experts_per_tok", "must not exceed the number of experts, 8"),
        ("mixtral-8x7b", {"num_key_value_heads": 5}, "num_key_value_heads", "must be a multiple"),
        ("mixtral-8x7b", {"hidden_size": 4097}, "num_attention_heads", "must divide hidden_size=4097"),
        ("mixtral-8x7b", {"num_hidden_layers": 10_001}, "num_hidden_layers", "from 1 to 10,000"),
        ("mixtral-8x7b", {"tie_word_embeddings": "no"}, "tie_word_embeddings", "must be true or false"),
        ("mixtral-8x7b", {"torch_dtype": "bfloat61"}, "torch_dtype", "did you mean 'bfloat16'"),
        ("mixtral-8x7b", {"torch_dtype": 16}, "torch_dtype", "must be printable text"),
        ("mixtral-8x7b", {"model_type": "mix tral"}, "model_type", "must be a name"),
        ("mixtral-8x7b", {"model_type": ["mixtral"]}, "model_type", "must be printable text"),
        ("mixtral-8x7b", {"is_encoder_decoder": True}, "is_encoder_decoder", "only decoder models"),
        ("mixtral-8x7b", {"quantization_config": 4}, "quantization_config", "must be an object"),
        ("mixtral-8x7b", {"text_config": []}, "text_config", "must be an object"),
        ("deepseek-v3", {"n_group": 7}, "n_group", "must divide the number of experts, 256"),
        ("deepseek-v3", {"topk_group": 9}, "topk_group", "must be at most n_group=8"),
        ("deepseek-v3", {"num_experts_per_tok": 129}, "topk_group", "leave room for a token's 129 experts"),
        ("deepseek-v3", {"first_k_dense_replace": 62}, "first_k_dense_replace", "from 0 to 61"),
        ("deepseek-v3", {"moe_layer_freq": [1, 0]}, "moe_layer_freq", "each of the 61 layers, but has 2"),
        ("deepseek-v3", {"moe_layer_freq": []}, "moe_layer_freq", "each of the 61 layers, but is empty"),
        ("deepseek-v3", {"num_nextn_predict_layers": -1}, "num_nextn_predict_layers", "from 0 to"),
        ("gpt-oss-20b", {"layer_types": ["full_attention"]}, "layer_types", "each of the 24 layers, but has 1"),
        ("gpt-oss-20b", {"layer_types": ["mamba"] * 24}, "layer_types", "full_attention, sliding_attention"),
        ("gpt-oss-20b", {"sliding_window": 0}, "sliding_window", "from 1 to"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [48]}, "mlp_only_layers", "from 0 to 47"),
        ("qwen3-30b-a3b", {"decoder_sparse_step": 0}, "decoder_sparse_step", "from 1 to"),
        ("qwen3-next-80b-a3b", {"linear_num_key_heads": 5}, "linear_num_key_heads", "must be a multiple"),
        (
            "mixtral-8x7b",
            {"model_type": "new", "mamba_d_state": 16},
            "mamba_d_state",
            "cannot be planned yet: state-space",
        ),
        ("mixtral-8x7b", {"_source": "\ud800"}, "_source", "must be printable text"),
        (
            "mixtral-8x7b",
            {"quantization_config": {"quant_method": "fp8", "ignore": 1}},
            "quantization_config.ignore",
            "must be a list",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_rule(name: str, changes: dict[str, object], field: str, rule: str) -> None:
    with pytest.raises(InputError) as caught:
        _read(_catalogue(name, **changes))
    assert caught.value.field == field
    assert rule in str(caught.value)


def test_a_field_of_a_wrapped_model_is_named_with_its_path() -> None:
    config = _catalogue("llama-4-scout")
    config["text_config"]["hidden_size"] = -5
    with pytest.raises(InputError, match=r"^config\.json: text_config\.hidden_size = -5: must be a whole number"):
        _read(config)


@settings(max_examples=300)
@given(data=st.data(), value=json_values)
def test_junk_anywhere_gives_a_model_or_an_input_error(data: st.DataObject, value: object) -> None:
    config = data.draw(st.sampled_from([*ANY_FAMILY, "new"]).flatmap(_any))
    holder = config.get("text_config", config)
    extra = ["quantization_config", "torch_dtype", "layer_types", "sliding_window", "text_config", "moe_layer_freq"]
    holder[data.draw(st.sampled_from([*holder, *extra]))] = value
    outcome = _outcome(config)
    if isinstance(outcome, Model):
        assert Model.model_validate_json(outcome.model_dump_json()) == outcome
    else:
        assert "config.json" in str(outcome)


def _any(model_type: str) -> st.SearchStrategy[dict[str, Any]]:
    if model_type != "new":
        return random_config(model_type)
    return random_config("qwen3_moe").map(lambda config: config | {"model_type": "new"})


@given(config=st.dictionaries(st.text(max_size=20), json_values, max_size=5))
def test_any_object_that_is_no_config_is_an_input_error(config: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        _read(config)


@given(quantization=st.dictionaries(st.sampled_from(["quant_method", "bits", "ignore", "config_groups"]), json_values))
def test_junk_in_the_quantisation_gives_a_model_or_an_input_error(quantization: dict[str, Any]) -> None:
    config = _catalogue("mixtral-8x7b", quantization_config=quantization)
    outcome = _outcome(config)
    assert isinstance(outcome, Model) or str(outcome.field).startswith("quantization_config.")


def test_an_unknown_architecture_is_read_by_the_usual_keys_with_a_warning() -> None:
    known, new = _catalogue("mixtral-8x7b"), _catalogue("mixtral-8x7b", model_type="brand_new")
    model = _read(new)
    assert model.num_parameters == _read(known).num_parameters
    assert model.architecture == "brand_new"
    assert len(model.warnings) == 1
    assert "'brand_new' is not known" in model.warnings[0]
    assert "32 sparse and 0 dense" in model.warnings[0]
    assert _read(known).warnings == ()


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"])
def test_an_unknown_architecture_may_count_its_experts_under_any_usual_key(key: str) -> None:
    config = _catalogue("mixtral-8x7b", model_type="brand_new")
    config[key] = config.pop("num_local_experts")
    moe = _read(config).moe
    assert moe is not None
    assert moe.num_experts == 8


def test_an_unknown_architecture_may_have_latent_attention_and_dense_first_layers() -> None:
    model = _read(_catalogue("deepseek-v3", model_type="deepseek_v9"))
    assert isinstance(model.layers[0].attention, MultiHeadLatentAttention)
    assert [layer.feed_forward.kind for layer in model.layers[:5]] == ["dense"] * 3 + ["moe"] * 2
    assert model.num_parameters == _read(_catalogue("deepseek-v3")).num_parameters


def test_an_unknown_dense_architecture_is_read_too() -> None:
    model = _read(_catalogue("llama-3.1-8b", model_type="brand_new", num_experts=None))
    assert model.moe is None
    assert model.num_parameters == 8_030_261_248


def test_a_squared_relu_has_no_gate() -> None:
    silu, relu2 = (
        _read(_catalogue("llama-3.1-8b", model_type="brand_new", hidden_act=act)) for act in ("silu", "relu2")
    )
    assert silu.num_parameters - relu2.num_parameters == 32 * 4096 * 14336


def test_the_text_part_of_a_multimodal_model_is_read_with_a_warning() -> None:
    model = _read(_catalogue("llama-4-maverick", vision_config={"hidden_size": 1408}))
    assert model.architecture == "llama4_text"
    assert model.warnings == ("only text_config is planned: 'vision_config' is not counted",)


def test_deepseek_v3_layer_by_layer() -> None:
    model = _read(_catalogue("deepseek-v3"))
    dense, sparse = model.layers[0].feed_forward, model.layers[3].feed_forward
    assert isinstance(dense, DenseFeedForward)
    assert isinstance(sparse, MoeFeedForward)
    assert (dense.intermediate_size, sparse.num_experts, sparse.top_k) == (18432, 256, 8)
    assert (sparse.shared_intermediate_size, sparse.num_groups, sparse.top_k_groups) == (2048, 8, 4)
    assert model.layers[0].attention.cache_elements_per_token() == 512 + 64
    assert (model.num_layers, model.num_moe_layers, model.num_mtp_layers) == (61, 58, 1)


def test_gpt_oss_alternates_windows_and_full_attention() -> None:
    windows = [getattr(layer.attention, "sliding_window", None) for layer in _read(_catalogue("gpt-oss-20b")).layers]
    assert windows == [128, None] * 12


def test_llama_4_maverick_alternates_dense_and_sparse_and_looks_far_in_every_fourth_layer() -> None:
    layers = _read(_catalogue("llama-4-maverick")).layers
    assert [layer.feed_forward.kind for layer in layers[:4]] == ["dense", "moe", "dense", "moe"]
    windows = [getattr(layer.attention, "sliding_window", None) for layer in layers[:4]]
    assert windows == [8192, 8192, 8192, None]


def test_qwen3_next_has_softmax_attention_in_every_fourth_layer() -> None:
    layers = _read(_catalogue("qwen3-next-80b-a3b")).layers
    kinds = [type(layer.attention) for layer in layers]
    assert kinds == [LinearAttention, LinearAttention, LinearAttention, GroupedQueryAttention] * 12


def test_nemotron_3_super_has_one_part_a_layer_and_experts_in_a_latent() -> None:
    model = _read(_catalogue("nemotron-3-super-120b-a12b"))
    letters = {"linear": "M", "gqa": "*"}
    pattern = "".join("E" if each.attention is None else letters[each.attention.kind] for each in model.layers)
    assert pattern == _catalogue("nemotron-3-super-120b-a12b")["hybrid_override_pattern"]
    assert [layer.num_norms for layer in model.layers] == [1] * 88
    experts = model.moe
    assert experts is not None
    assert (experts.latent_size, experts.gated, experts.row_size(model.hidden_size)) == (1024, False, 1024)
    mixer = model.layers[0].attention
    assert isinstance(mixer, LinearAttention)
    # 128 heads of 64 inputs by 128 states, and three tokens of x, B and C for the convolution
    assert mixer.state_elements() == 128 * 64 * 128
    assert mixer.convolution_elements() == 3 * (128 * 64 + 2 * 8 * 128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hybrid_override_pattern": "MXE"}, "hybrid_override_pattern"),
        ({"hybrid_override_pattern": "ME*"}, "num_hidden_layers = 52: must be the number of layers"),
        ({"layers_block_type": ["mamba"]}, "must have one entry for each of the 52 layers"),
        ({"layers_block_type": ["lstm"] * 52}, "must be a list of strings of"),
        ({"n_groups": 7}, "n_groups = 7: must divide mamba_num_heads=64"),
    ],
)
def test_an_impossible_hybrid_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _read(_catalogue("nemotron-3-nano-30b-a3b", **changes))


def test_minimax_m1_by_the_keys_of_its_own_repository() -> None:
    config = _catalogue("minimax-m1", model_type="minimax_m1", attn_type_list=[0, 0, 0, 0, 0, 0, 0, 1] * 10)
    del config["layer_types"]
    expected = _read(_catalogue("minimax-m1"))
    assert _read(config).layer_blocks == expected.layer_blocks
    assert _read(config).blocks == expected.blocks
