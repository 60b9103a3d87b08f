"""From a Hugging Face `config.json` to a Model, without a network and without the model's code."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import ValidationError

from moiety.errors import InputError
from moiety.model.config import LARGEST_COUNT, MAX_LAYERS, MAX_POSITIONS, Config
from moiety.model.families import FAMILIES, NORMS_WITH_BIAS, TIED_BY_DEFAULT
from moiety.model.families.generic import described, generic
from moiety.model.model import Block, Model
from moiety.model.quantization import WeightFormats, weight_formats
from moiety.records import broken_rule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TEXT_PARTS = ("text_config", "language_config", "llm_config", "thinker_config")
_POSITIONS_KEYS = ("max_position_embeddings", "max_seq_len", "model_max_length")
_MTP_KEYS = ("num_nextn_predict_layers", "num_mtp_layers", "num_mtp_modules", "mtp_num_hidden_layers")
_MODEL_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def model_from_config(config: Mapping[str, object], *, name: str, source: str) -> Model:
    """Return the model that a parsed `config.json` describes.

    `source` names the file in messages; a `_source` key inside says where its numbers come from. An architecture
    that is not known is read by the usual keys, with a warning. Raises InputError for a missing or impossible value.
    """
    name, source = (text.encode(errors="backslashreplace").decode() for text in (name, source))
    top = Config(values=config, source=source)
    text, warnings = _text_part(top)
    _refuse_encoder_decoder(text)
    architecture = _architecture(text, top)
    blocks = list(FAMILIES[architecture](text)) if architecture in FAMILIES else generic(text)
    if architecture not in FAMILIES:
        warnings = (*warnings, _unknown(architecture, blocks))
    formats = weight_formats(text, top)
    try:
        return _model(name, architecture, text, top, blocks, formats, (*warnings, *formats.warnings))
    except ValidationError as error:
        first = broken_rule(error)
        raise InputError(first.rule, source=source, field=first.field, value=first.given) from None


def _model(
    name: str,
    architecture: str,
    text: Config,
    top: Config,
    blocks: Sequence[Block],
    formats: WeightFormats,
    warnings: tuple[str, ...],
) -> Model:
    numbers: dict[Block, int] = {}
    layer_blocks = tuple(numbers.setdefault(block, len(numbers)) for block in blocks)
    tied = text if text.has("tie_word_embeddings") else top
    return Model(
        name=name,
        architecture=architecture,
        hidden_size=text.integer("hidden_size", "d_model"),
        vocab_size=text.integer("vocab_size", maximum=LARGEST_COUNT),
        blocks=tuple(numbers),
        layer_blocks=layer_blocks,
        tie_word_embeddings=tied.flag("tie_word_embeddings", default=architecture in TIED_BY_DEFAULT),
        head_bias=text.flag("lm_head_bias", default=False),
        num_final_norms=2 if architecture in NORMS_WITH_BIAS else 1,
        max_position_embeddings=text.optional_integer(*_POSITIONS_KEYS, maximum=MAX_POSITIONS),
        num_mtp_layers=text.integer(*_MTP_KEYS, minimum=0, maximum=MAX_LAYERS, default=0),
        weight_dtype=formats.dense,
        block_scales=formats.block_scales,
        expert_dtype=formats.experts,
        source=top.text("_source") or top.source,
        warnings=warnings,
    )


def _text_part(top: Config) -> tuple[Config, tuple[str, ...]]:
    """Return the part of a multimodal file that describes its language model, and what is left out of account."""
    key = top.first_key(*_TEXT_PARTS)
    text = top.section(key)
    if text is None:
        return top, ()
    if text.has(*_TEXT_PARTS):  # Qwen3-Omni's thinker has a text part of its own
        return _text_part(text)
    rest = [
        name
        for name, value in top.values.items()
        if name.endswith("_config") and isinstance(value, dict) and name not in {key, "quantization_config"}
    ]
    others = ", ".join(repr(name) for name in rest) or "what else the model has (vision, audio)"
    return text, (f"only {key} is planned: {others} is not counted",)


def _architecture(text: Config, top: Config) -> str:
    """Return the `model_type`, `unknown` where the file has none."""
    holder = text if text.has("model_type") else top
    name = holder.text("model_type")
    if name is None:
        return "unknown"
    if not _MODEL_TYPE.fullmatch(name):
        raise holder.error("must be a name of letters, digits, '_', '-' and '.'", "model_type")
    return name


def _refuse_encoder_decoder(text: Config) -> None:
    if text.flag("is_encoder_decoder", default=False):
        raise text.error("only decoder models are planned, this one has an encoder too", "is_encoder_decoder")


def _unknown(architecture: str, blocks: list[Block]) -> str:
    return (
        f"architecture {architecture!r} is not known: read by the usual keys as {described(blocks)}; "
        "its parameter count is an estimate"
    )
