"""The checkpoint of a run: whether it is there, is of the plan's model, and what ends its sequences."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from moiety.errors import InputError
from moiety.files import read_text
from moiety.json_object import read_json_object
from moiety.model.huggingface import model_from_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moiety.model.model import Model
    from moiety.runtime.checkpoint.index import Checkpoint

_LIBRARIES = ("torch", "transformers", "safetensors")
_BESIDE_THE_SHAPE = frozenset({"name", "source", "warnings", "num_parameters", "num_active_parameters"})
"""Fields of a model that say nothing of its weights, or follow from those that do."""


def check_libraries(verb: str) -> None:
    """Raise InputError where a library that executes plans is not installed; none is imported for that."""
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        rule = f"needs {', '.join(missing)}, which the plain installation leaves out"
        raise InputError(rule, field=f"moiety {verb}", remedy="pip install 'moiety[runtime]'")


def model_of(checkpoint: Checkpoint) -> Model:
    """Return the model that a checkpoint's config.json describes."""
    source = str(checkpoint.folder / "config.json")
    return model_from_config(checkpoint.config, name=checkpoint.folder.resolve().name or "checkpoint", source=source)


def check_same_model(planned: Model, found: Model) -> None:
    """Raise InputError with the first field in which the checkpoint's model differs from the plan's."""
    difference = first_difference(planned.model_dump(mode="json"), found.model_dump(mode="json"))
    if difference is None:
        return
    field, expected, value = difference
    remedy = "give the checkpoint of the plan's model, or plan this one"
    if is_scaled_down(planned, found):
        remedy += "; --fold N rehearses the plan on a scaled-down copy of its model"
    rule = f"the plan's model, {planned.name}, has {expected!r}"
    raise InputError(rule, source=found.source, field=field, value=value, remedy=remedy)


def check_scaled_down(planned: Model, found: Model) -> bool:
    """Return whether a rehearsal runs on a smaller copy of the plan's model rather than on that itself.

    Raises InputError for a model of another architecture, or a larger one.
    """
    if first_difference(planned.model_dump(mode="json"), found.model_dump(mode="json")) is None:
        return False
    if found.architecture != planned.architecture:
        rule = f"the plan's model, {planned.name}, is of the architecture {planned.architecture}"
        remedy = "rehearse it on a smaller checkpoint of the same architecture"
        raise InputError(rule, source=found.source, field="model_type", value=found.architecture, remedy=remedy)
    if not is_scaled_down(planned, found):
        rule = (
            f"a rehearsal takes a smaller copy of the plan's model, and {planned.name} has {planned.num_parameters:,}"
        )
        raise InputError(rule, source=found.source, field="parameters", value=found.num_parameters)
    return True


def is_scaled_down(planned: Model, found: Model) -> bool:
    """Return whether a model is of the same architecture as the plan's, and smaller."""
    return found.architecture == planned.architecture and found.num_parameters < planned.num_parameters


def first_difference(planned: object, found: object, path: str = "") -> tuple[str, object, object] | None:
    """Return the path of the first field in which two models' JSON differs, and both values; None where they agree."""
    difference: tuple[str, object, object] = (path, planned, found)
    if isinstance(planned, dict) and isinstance(found, dict):
        one, other = cast("Mapping[str, object]", planned), cast("Mapping[str, object]", found)
        for key in dict.fromkeys((*one, *other)):
            if not path and key in _BESIDE_THE_SHAPE:
                continue
            inner = first_difference(one.get(key), other.get(key), f"{path}.{key}" if path else key)
            if inner is not None:
                return inner
        return None
    if isinstance(planned, list) and isinstance(found, list):
        first, second = cast("Sequence[object]", planned), cast("Sequence[object]", found)
        if len(first) != len(second):
            return f"number of {path}", len(first), len(second)
        pairs = enumerate(zip(first, second, strict=True))
        found_inside = (first_difference(one, other, f"{path}[{index}]") for index, (one, other) in pairs)
        return next((each for each in found_inside if each is not None), None)
    return None if planned == found else difference


def stop_tokens(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return the tokens that end a sequence, as `transformers` reads them.

    From generation_config.json where there is one, else from config.json. Raises InputError for what is no token id.
    """
    path = checkpoint.folder / "generation_config.json"
    source, key = str(path), "eos_token_id"
    if path.is_file():
        value = read_json_object(read_text(path), source=source, remedy="fetch the checkpoint again").get(key)
    else:
        source, text = str(checkpoint.folder / "config.json"), checkpoint.config.get("text_config")
        value = checkpoint.config.get(key)
        if value is None and isinstance(text, dict):
            value = cast("dict[str, object]", text).get(key)
    values = cast("list[object]", value) if isinstance(value, list) else [] if value is None else [value]
    for each in values:
        if isinstance(each, bool) or not isinstance(each, int):
            raise InputError("must be a token id, a list of them or null", source=source, field=key, value=each)
    return tuple(each for each in cast("list[int]", values) if each >= 0)
