"""Laws of the Model record."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moiety.model.attention import GroupedQueryAttention
from moiety.model.catalog import catalog_models, load_catalog_model
from moiety.model.feed_forward import DenseFeedForward, MoeFeedForward
from moiety.model.huggingface import model_from_config
from moiety.model.model import Block, Model
from tests.model.configs import ANY_FAMILY, random_config

any_config = st.sampled_from(ANY_FAMILY).flatmap(random_config)


def _dense(*, tied: bool) -> Model:
    attention = GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=8)
    block = Block(attention=attention, feed_forward=DenseFeedForward(intermediate_size=64))
    return Model(
        name="small",
        architecture="llama",
        hidden_size=32,
        vocab_size=100,
        blocks=(block,),
        layer_blocks=(0, 0, 0),
        tie_word_embeddings=tied,
    )


@given(config=any_config)
def test_a_model_survives_its_json(config: dict[str, Any]) -> None:
    model = model_from_config(config, name="random", source="config.json")
    assert Model.model_validate_json(model.model_dump_json()) == model
    assert Model.model_validate(model.model_dump()) == model


@given(config=any_config)
def test_a_token_uses_at_most_the_parameters_there_are(config: dict[str, Any]) -> None:
    model = model_from_config(config, name="random", source="config.json")
    assert 0 < model.num_active_parameters <= model.num_parameters
    parts = [block.feed_forward for block in model.layers if block.feed_forward is not None]
    assert model.num_moe_layers == sum(part.kind == "moe" for part in parts) <= model.num_layers


@pytest.mark.parametrize("name", catalog_models())
def test_layers_one_by_one_give_the_same_count_as_blocks_together(name: str) -> None:
    model = load_catalog_model(name)
    layers = sum(layer.num_parameters(model.hidden_size) for layer in model.layers)
    tables = model.hidden_size * model.vocab_size * (1 if model.tie_word_embeddings else 2)
    assert model.num_parameters == layers + tables + model.hidden_size


@pytest.mark.parametrize("key", ["num_parameters", "num_active_parameters"])
@pytest.mark.parametrize("change", [lambda n: n + 1, lambda n: -n, str, float, lambda _: None, lambda _: True])
def test_a_stored_count_that_is_not_the_recomputed_one_is_refused(key: str, change: Any) -> None:  # noqa: ANN401
    stored = json.loads(load_catalog_model("mixtral-8x7b").model_dump_json())
    stored[key] = change(stored[key])
    with pytest.raises(ValidationError, match=f"{key} is stored as .* but the other fields give [0-9]+"):
        Model.model_validate_json(json.dumps(stored))


def test_a_dense_untied_model_uses_everything_but_its_embedding_table() -> None:
    untied, tied = _dense(tied=False), _dense(tied=True)
    assert untied.num_parameters - untied.num_active_parameters == 32 * 100
    assert untied.num_parameters - tied.num_parameters == 32 * 100
    assert tied.num_active_parameters == tied.num_parameters == untied.num_active_parameters


def test_the_count_of_a_dense_model_by_hand() -> None:
    attention = 32 * (4 * 8 + 2 * 2 * 8) + 4 * 8 * 32
    layer = attention + 3 * 32 * 64 + 2 * 32
    assert _dense(tied=False).num_parameters == 2 * 32 * 100 + 3 * layer + 32


def test_a_layer_that_names_no_block_is_refused() -> None:
    stored = _dense(tied=True).model_dump() | {"layer_blocks": (0, 1)}
    del stored["num_parameters"], stored["num_active_parameters"]
    with pytest.raises(ValidationError, match="layer_blocks names block 1, but there are 1"):
        Model.model_validate(stored)


@pytest.mark.parametrize(
    "wrong", [{"top_k": 9}, {"num_groups": 3}, {"num_groups": 4, "top_k_groups": 5}, {"num_experts": 0}]
)
def test_an_impossible_mixture_of_experts_is_refused(wrong: dict[str, int]) -> None:
    legal = {"num_experts": 8, "top_k": 2, "expert_intermediate_size": 16}
    assert MoeFeedForward.model_validate(legal).num_experts == 8
    with pytest.raises(ValidationError):
        MoeFeedForward.model_validate(legal | wrong)
