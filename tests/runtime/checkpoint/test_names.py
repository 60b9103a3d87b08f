"""The model finds its parameters under the names of old and new checkpoints, and knows what it does not need."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from moiety.errors import InputError
from moiety.runtime.checkpoint.names import STANDS_FOR, is_leftover, ties_by_default
from tests.runtime.checkpoint.models import LAYER, change_file, save_stacked, source_of, tiny_model, weights_of

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.runtime.checkpoint.weights import WeightSource

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("architecture", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_a_checkpoint_of_the_model_without_its_head_has_no_prefix(tmp_path: Path, architecture: str) -> None:
    model = tiny_model(architecture)
    model.model.save_pretrained(tmp_path)
    change_file(tmp_path, {HEAD: weights_of(model)[HEAD].clone()})
    source = source_of(tmp_path, model)
    assert not any(name.startswith("model.") for name in source.checkpoint.tensors)
    check_equal(source, weights_of(model))


def test_a_head_and_its_model_serve_a_bare_model(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe")
    model.save_pretrained(tmp_path)
    source = source_of(tmp_path, model.model)
    source.check()
    assert source.unused() == (HEAD,)
    assert torch.equal(source.read("norm.weight"), model.model.norm.weight)


@pytest.mark.parametrize("kept", [HEAD, EMBEDDING, None])
def test_of_tied_weights_one_is_enough_and_both_are_taken_as_stored(tmp_path: Path, kept: str | None) -> None:
    model = tiny_model("qwen2_moe", tie_word_embeddings=True)
    weights = weights_of(model)
    weights[HEAD] = weights[HEAD] + (kept is None)
    save_stacked(model, tmp_path, weights if kept is None else {HEAD: None, EMBEDDING: None, kept: weights[kept]})
    check_equal(source_of(tmp_path, model), weights)


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_an_untied_head_must_be_there(tmp_path: Path, architecture: str) -> None:
    model = tiny_model(architecture)
    save_stacked(model, tmp_path, {HEAD: None})
    config = tmp_path / "config.json"
    for stated in (True, False):  # where config.json does not say so, the architecture does
        content = json.loads(config.read_text())
        content.pop("tie_word_embeddings", None)
        config.write_text(json.dumps(content | ({"tie_word_embeddings": False} if stated else {})))
        with pytest.raises(InputError, match=r"lm_head\.weight: the tensor is missing; "):
            source_of(tmp_path, model).check()


@pytest.mark.parametrize("architecture", ["mixtral", "llama", "gemma"])
def test_the_default_of_tying_is_that_of_transformers(architecture: str) -> None:
    expected = bool(transformers.AutoConfig.for_model(architecture).tie_word_embeddings)
    assert ties_by_default(architecture) == expected == (architecture == "gemma")


def test_layers_that_predict_further_tokens_and_frequencies_are_of_no_use(tmp_path: Path) -> None:
    model = tiny_model("deepseek_v3")
    model.save_pretrained(tmp_path)
    more = {
        "model.layers.2.eh_proj.weight": torch.zeros(4, 8),
        "model.layers.2.mlp.experts.0.gate_proj.weight": torch.zeros(24, 32),
        "model.layers.2.shared_head.head.weight": torch.zeros(3, 4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
        "model.layers.1.mlp.surprise.weight": torch.zeros(2),
        "vision.proj": torch.zeros(2),
    }
    change_file(tmp_path, more)
    source = source_of(tmp_path, model)
    assert source.unused() == ("model.layers.1.mlp.surprise.weight", "vision.proj")
    check_equal(source, weights_of(model))


@pytest.mark.parametrize(
    ("name", "num_layers", "leftover"),
    [
        ("model.layers.61.embed_tokens.weight", 61, True),
        ("layers.61.enorm.weight", 61, True),
        ("model.layers.60.embed_tokens.weight", 61, False),
        ("model.layers.61.embed_tokens.weight", None, False),
        ("mtp.fc.weight", 2, True),
        ("model.rotary_emb.inv_freq", 2, True),
        ("rotary_emb.inv_freq", 2, True),
        ("model.layers.0.self_attn.k_scale", 2, True),
        ("model.inv_freqs", 2, False),
    ],
)
def test_leftovers_are_known_by_their_names(name: str, num_layers: int | None, *, leftover: bool) -> None:
    assert is_leftover(name, num_layers) == leftover


@pytest.mark.parametrize(("architecture", "code"), STANDS_FOR.items())
def test_an_architecture_without_code_of_its_own_is_read_as_the_one_it_is(
    tmp_path: Path, architecture: str, code: str
) -> None:
    model = tiny_model(code)
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace(f'"model_type": "{code}"', f'"model_type": "{architecture}"'))
    source = source_of(tmp_path, model)
    assert source.checkpoint.config["model_type"] == architecture
    check_equal(source, weights_of(model))
    assert source.read_expert(LAYER, "gate_up_proj", 1, slice(4)).shape == (8, 32)


def test_the_language_part_of_a_config_is_the_one_that_counts(tmp_path: Path) -> None:
    model = tiny_model("gpt_oss")
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    nested = {"model_type": "some_vision_model", "text_config": json.loads(config.read_text())}
    config.write_text(json.dumps(nested))
    whole = weights_of(model)[f"{LAYER}.gate_up_proj"][0]
    found = source_of(tmp_path, model).read_expert(LAYER, "gate_up_proj", 0, slice(1, 3))
    assert torch.equal(found, whole[:, 2:6])  # alternating, as in gpt-oss


def check_equal(source: WeightSource, weights: dict[str, Any]) -> None:
    source.check()
    for name, tensor in weights.items():
        assert torch.equal(source.read(name), tensor), name
