"""The catalogue of models: sizes as published, files that load, names that help."""

from __future__ import annotations

import json

import pytest

from moiety.errors import InputError
from moiety.model.catalog import catalog_model_text, catalog_models, load_catalog_model

PUBLISHED = {
    "deepseek-r1": (671.0, 37.0),
    "deepseek-v2": (236.0, 21.0),
    "deepseek-v2-lite": (15.7, 2.4),
    "deepseek-v3": (671.0, 37.0),
    "deepseek-v3.2": (671.0, 37.0),
    "glm-4.5": (355.0, 32.0),
    "glm-4.5-air": (106.0, 12.0),
    "glm-5": (744.0, 40.0),
    "gpt-oss-120b": (116.8, 5.1),
    "gpt-oss-20b": (20.9, 3.6),
    "kimi-k2": (1030.0, 32.0),
    "kimi-k2-thinking": (1030.0, 32.0),
    "llama-2-70b": (69.0, 69.0),
    "llama-2-7b": (6.74, 6.74),
    "llama-3.1-405b": (405.9, 405.9),
    "llama-3.1-70b": (70.6, 70.6),
    "llama-3.1-8b": (8.03, 8.03),
    "llama-3.2-1b": (1.24, 1.24),
    "llama-3.2-3b": (3.21, 3.21),
    "llama-4-maverick": (400.0, 17.0),
    "llama-4-scout": (109.0, 17.0),
    "minimax-m1": (456.0, 45.9),
    "minimax-m2": (230.0, 10.0),
    "mistral-7b": (7.25, 7.25),
    "mistral-small-24b": (23.6, 23.6),
    "mixtral-8x22b": (141.0, 39.0),
    "mixtral-8x7b": (46.7, 12.9),
    "nemotron-3-nano-30b-a3b": (31.6, 3.2),
    "nemotron-3-super-120b-a12b": (120.0, 12.0),
    "nemotron-3-ultra-550b-a55b": (550.0, 55.0),
    "nemotron-3.5-lightning-30b-a3b": (31.6, 3.2),
    "olmoe-1b-7b": (6.92, 1.28),
    "qwen2-57b-a14b": (57.4, 14.0),
    "qwen2.5-14b": (14.7, 14.7),
    "qwen2.5-32b": (32.5, 32.5),
    "qwen2.5-72b": (72.7, 72.7),
    "qwen2.5-7b": (7.61, 7.61),
    "qwen3-0.6b": (0.6, 0.6),
    "qwen3-1.7b": (1.7, 1.7),
    "qwen3-14b": (14.8, 14.8),
    "qwen3-235b-a22b": (235.1, 22.0),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen3-32b": (32.8, 32.8),
    "qwen3-4b": (4.0, 4.0),
    "qwen3-8b": (8.19, 8.19),
    "qwen3-coder-480b-a35b": (480.0, 35.0),
    "qwen3-next-80b-a3b": (80.0, 3.9),
    "qwen3.5-122b-a10b": (122.0, 10.0),
    "qwen3.5-35b-a3b": (35.0, 3.0),
    "qwen3.5-397b-a17b": (397.0, 17.0),
    "reference-moe-235b": (235.0, 22.9),
}
"""Billions of parameters in all and per token, from the models' own pages: rounded, some with the embedding."""


@pytest.mark.parametrize("name", catalog_models())
def test_a_model_is_as_large_as_its_makers_say(name: str) -> None:
    model = load_catalog_model(name)
    total, active = PUBLISHED[name]
    embedding = 0 if model.tie_word_embeddings else model.hidden_size * model.vocab_size
    assert model.num_parameters / 1e9 == pytest.approx(total, rel=0.015)
    candidates = [model.num_active_parameters / 1e9, (model.num_active_parameters + embedding) / 1e9]
    assert min(abs(each - active) / active for each in candidates) < 0.07


@pytest.mark.parametrize("name", catalog_models())
def test_a_model_loads_without_doubts_and_names_its_source(name: str) -> None:
    model = load_catalog_model(name)
    assert model.name == name
    assert model.source == json.loads(catalog_model_text(name))["_source"]
    assert [warning for warning in model.warnings if not warning.startswith("only text_config")] == []


def test_every_model_has_a_published_size() -> None:
    assert set(PUBLISHED) == set(catalog_models())


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(InputError, match="did you mean 'deepseek-v3'"):
        load_catalog_model("deepseek-v33")


@pytest.mark.parametrize("name", ["../models/mixtral-8x7b", "", "mixtral-8x7b.json", "/etc/passwd", "\x00"])
def test_a_path_is_not_a_name(name: str) -> None:
    with pytest.raises(InputError, match="is not a model of the catalogue"):
        catalog_model_text(name)
