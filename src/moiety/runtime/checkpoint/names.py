"""Names: under which name the model knows each tensor of the files, by the renamings and merges of `transformers`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from transformers import AutoConfig, conversion_mapping
from transformers.core_model_loading import WeightConverter

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

BASE_PREFIX = "model."
"""Where the language model stands in the model with its output head; a checkpoint of the former is without it."""
STANDS_FOR = {"kimi_k2": "deepseek_v3"}
"""Architectures whose code is not in `transformers` because it is that of another one."""
_LEFTOVERS = re.compile(r"(^|\.)rotary_emb\.inv_freq$|^(model\.)?mtp\.|\.(k|v|input|activation)_scale$")
"""Tensors that nothing needs: computed frequencies, layers that predict further tokens, scales of activations."""
_LAYER = re.compile(r"\blayers\.(\d+)\.")


class Operation(Protocol):
    """A step of a converter of `transformers`; its class says which."""

    dim: int


class _Transform(Protocol):
    """A renaming or converter of `transformers`."""

    source_patterns: list[str]

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]: ...


class _Mappings(Protocol):
    """The module of `transformers` that knows how checkpoints of each architecture are stored."""

    def get_checkpoint_conversion_mapping(self, model_type: str) -> list[_Transform] | None: ...


class _Configuration(Protocol):
    tie_word_embeddings: bool | None


class _Configurations(Protocol):
    """The configurations of `transformers`, by architecture."""

    def for_model(self, model_type: str) -> _Configuration: ...


class Converter(_Transform, Protocol):
    """A converter of `transformers`: several tensors become one, by operations one after the other."""

    operations: Sequence[Operation]


@dataclass(frozen=True, slots=True)
class Part:
    """What one tensor of the files is of a parameter of the model."""

    name: str
    """In the files."""
    target: str
    """Name of the parameter in the model."""
    converter: Converter | None = None
    """None where the tensor is the whole parameter."""
    pattern: int = 0
    """Which of the converter's sources it is, such as 0 for gate, 1 for up."""
    number: int = 0
    """Its place in the list that is stacked: the expert."""


def parts_of(names: Collection[str], model_type: str, targets: Collection[str]) -> list[Part]:
    """Return what each tensor of the files is in the model that has the parameters `targets`."""
    transforms = _transforms(model_type)
    renamings = [each for each in transforms if not isinstance(each, WeightConverter)]
    converters = [cast("Converter", each) for each in transforms if isinstance(each, WeightConverter)]
    return [_part(name, renamings, converters, targets) for name in names]


def renumbered(target: str, other: str, name: str) -> str | None:
    """Return the `name` in the files of a parameter `target` as it would be of `other`, the same of another layer.

    None where `other` is not the same parameter of another layer.
    """
    layers = [_LAYER.search(each) for each in (target, other)]
    if layers[0] is None or layers[1] is None or _LAYER.sub("", target) != _LAYER.sub("", other):
        return None
    return _LAYER.sub(layers[1].group(0), name, count=1)


def ties_by_default(model_type: str) -> bool:
    """Say whether a model whose config.json leaves it out takes its embedding as its output head."""
    configuration = cast("_Configurations", AutoConfig).for_model(STANDS_FOR.get(model_type, model_type))
    return bool(configuration.tie_word_embeddings)


def is_leftover(name: str, num_layers: int | None) -> bool:
    """Say whether a tensor that the model does not know is known to be of no use to it."""
    layer = _LAYER.search(name)
    beyond = layer is not None and num_layers is not None and int(layer.group(1)) >= num_layers
    return beyond or _LEFTOVERS.search(name) is not None


def _transforms(model_type: str) -> list[_Transform]:
    known = STANDS_FOR.get(model_type, model_type)
    found: list[_Transform] = []
    for key in (known, "legacy"):
        found += cast("_Mappings", conversion_mapping).get_checkpoint_conversion_mapping(key) or []
    return found


def _part(
    name: str, renamings: Sequence[_Transform], converters: Sequence[Converter], targets: Collection[str]
) -> Part:
    """Rename as `transformers` does: every renaming in turn, then at most one converter, then the base prefix."""
    renamed = name
    for renaming in renamings:
        renamed, _ = renaming.rename_source_key(renamed)
    for converter in converters:
        target, pattern = converter.rename_source_key(renamed)
        if pattern is not None:
            place = converter.source_patterns.index(pattern)
            return Part(name, _prefixed(target, targets), converter, place, _number(renamed, pattern))
    return Part(name, _prefixed(renamed, targets))


def _prefixed(target: str, targets: Collection[str]) -> str:
    if target not in targets:
        for other in (BASE_PREFIX + target, target.removeprefix(BASE_PREFIX)):
            if other in targets:
                return other
    return target


def _number(renamed: str, pattern: str) -> int:
    """Return what the star of the pattern stands for in the name, 0 where it has none."""
    found = re.search(pattern.replace("*", r"(\d+)"), renamed) if "*" in pattern else None
    return int(found.group(1)) if found else 0
