"""The checkpoint of a run beside the plan's model: the first difference, scaled-down copies, the tokens that end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from moiety.cli.run_checkpoint import check_same_model, check_scaled_down, first_difference, stop_tokens
from moiety.errors import InputError
from moiety.runtime.checkpoint.index import Checkpoint
from tests.scenarios import GQA, moe, small_model

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.model.model import Model

PLANNED = small_model()
COPY = small_model(GQA.model_copy(update={"head_dim": 32}))


@pytest.mark.parametrize(
    ("found", "field", "value"),
    [
        (PLANNED.model_copy(update={"hidden_size": 512}), "hidden_size", 512),
        (PLANNED.model_copy(update={"architecture": "other"}), "architecture", "other"),
        (PLANNED.model_copy(update={"weight_dtype": "fp32"}), "weight_dtype", "fp32"),
        (COPY, "blocks[0].attention.head_dim", 32),
        (small_model(part=moe(16, 4)), "blocks[0].feed_forward.top_k", 4),
        (small_model(num_layers=5), "number of layer_blocks", 5),
        (small_model(dense_layers=1), "number of blocks", 2),
    ],
)
def test_the_first_field_that_differs_is_named_with_both_values(found: Model, field: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        check_same_model(PLANNED, found)
    assert caught.value.field == field
    assert caught.value.value == value
    planned = PLANNED.model_dump(mode="json")
    difference = first_difference(planned, found.model_dump(mode="json"))
    assert difference is not None
    assert repr(difference[1]) in str(caught.value)


def test_names_and_sources_do_not_count() -> None:
    other = PLANNED.model_copy(update={"name": "x", "source": "y", "warnings": ("z",)})
    check_same_model(PLANNED, other)
    assert not check_scaled_down(PLANNED, other)


def test_a_smaller_copy_will_do_for_a_rehearsal_only() -> None:
    assert check_scaled_down(PLANNED, COPY)
    with pytest.raises(InputError, match="--fold N rehearses"):
        check_same_model(PLANNED, COPY)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (PLANNED.model_copy(update={"architecture": "mixtral"}), ("model_type = mixtral", "architecture test")),
        (small_model(num_layers=7), ("parameters", "smaller copy")),
    ],
)
def test_not_every_model_will_do_for_a_rehearsal(found: Model, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        check_scaled_down(PLANNED, found)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("config", "generation", "tokens"),
    [
        ({}, None, ()),
        ({"eos_token_id": 2}, None, (2,)),
        ({"eos_token_id": None}, None, ()),
        ({"text_config": {"eos_token_id": [3, 4]}}, None, (3, 4)),
        ({"eos_token_id": 2}, {}, ()),  # transformers reads generation_config.json alone where it is there
        ({"eos_token_id": 2}, {"eos_token_id": [5, 6]}, (5, 6)),
        ({"eos_token_id": -1}, None, ()),
    ],
)
def test_the_tokens_that_end_a_sequence(
    config: dict[str, object], generation: dict[str, object] | None, tokens: tuple[int, ...], tmp_path: Path
) -> None:
    assert stop_tokens(checkpoint(tmp_path, config, generation)) == tokens


def test_a_token_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="eos_token_id = end: must be a token id"):
        stop_tokens(checkpoint(tmp_path, {"eos_token_id": ["end"]}, None))


def checkpoint(folder: Path, config: dict[str, object], generation: dict[str, object] | None) -> Checkpoint:
    """Return a checkpoint without weights."""
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return Checkpoint(folder, config, folder / "model.safetensors", {})
