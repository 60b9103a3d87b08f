"""From the text of a `config.json` to a Model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.json_object import read_json_object
from moiety.model.huggingface import model_from_config

if TYPE_CHECKING:
    from moiety.model.model import Model


def read_model(text: str, *, name: str, source: str) -> Model:
    """Return the model whose `config.json` is `text`; raise InputError with line and column for malformed JSON."""
    config = read_json_object(text, source=source, remedy="give a Hugging Face config.json")
    return model_from_config(config, name=name, source=source)
