"""Parameter counts equal what `transformers` builds on the meta device, to the parameter; so do the kinds of layer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moiety.model.catalog import catalog_model_text, catalog_models, load_catalog_model
from moiety.model.feed_forward import MoeFeedForward
from moiety.model.huggingface import model_from_config
from tests.model.configs import ANY_FAMILY, random_config
from tests.model.oracle import built_parameters, configuration

if TYPE_CHECKING:
    from moiety.model.model import Block


@pytest.mark.parametrize("name", catalog_models())
def test_catalogue_model_has_the_parameters_that_transformers_builds(name: str) -> None:
    assert load_catalog_model(name).num_parameters == built_parameters(json.loads(catalog_model_text(name)))


@pytest.mark.parametrize("model_type", ANY_FAMILY)
@settings(max_examples=6, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_legal_config_has_the_parameters_and_layers_of_transformers(model_type: str, data: st.DataObject) -> None:
    config: dict[str, Any] = data.draw(random_config(model_type))
    model = model_from_config(config, name="random", source="config.json")
    assert model.num_parameters == built_parameters(config)
    expected = getattr(configuration(config), "layer_types", None)
    if expected is not None and model_type not in {"qwen2", "qwen3", "qwen2_moe"}:
        assert [_kind(layer) for layer in model.layers] == [kind.split("_")[0] for kind in expected]


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "qwen2_moe"])
@settings(max_examples=20, derandomize=True)
@given(data=st.data(), window=st.integers(1, 9999), bound=st.integers(0, 6), used=st.booleans())
def test_qwen_windows_stand_where_transformers_has_them(
    model_type: str, data: st.DataObject, window: int, bound: int, *, used: bool
) -> None:
    config: dict[str, Any] = data.draw(random_config(model_type))
    config |= {"sliding_window": window, "max_window_layers": bound, "use_sliding_window": used}
    expected = configuration(config)
    model = model_from_config(config, name="random", source="config.json")
    windows = [getattr(layer.attention, "sliding_window", None) for layer in model.layers]
    in_force = expected.sliding_window or None
    assert windows == [in_force if kind == "sliding_attention" else None for kind in expected.layer_types]


def _kind(layer: Block) -> str:
    attention, part = layer.attention, layer.feed_forward
    if attention is None:
        return "moe" if isinstance(part, MoeFeedForward) else "mlp"
    if attention.kind == "linear":
        return "linear"
    if getattr(attention, "indexer", None) is not None:
        return "indexed"
    window = getattr(attention, "sliding_window", None)
    return {None: "full", 8192: "chunked"}.get(window, "sliding")
