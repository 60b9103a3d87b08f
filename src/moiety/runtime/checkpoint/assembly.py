"""Assembly: parameters of the model as views of tensors in the files, and what is missing or does not fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from moiety.errors import InputError
from moiety.runtime.checkpoint.view import JoinedView, StackedView, StoredView

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moiety.runtime.checkpoint.names import Converter, Part
    from moiety.runtime.checkpoint.view import View

WEIGHT_FORMATS = ("F32", "BF16", "F16")
_NUMBER = re.compile(r"\.\d+\.(?!.*\.\d+\.)")
"""The last number in a name: the expert."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a parameter cannot be read; all of them are collected before anything is read."""

    name: str
    """Of the tensor."""
    rule: str
    value: object = None
    file: str | None = None
    """None where no file holds it."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """A parameter: the view of it, None where parts are missing, and its faults."""

    view: View | None
    faults: tuple[Fault, ...]


def assembled(parts: Sequence[Part], views: Mapping[str, View], shape: tuple[int, ...]) -> Assembly:
    """Return the parameter of that `shape` which consists of `parts`.

    Raises InputError where the files hold it twice, or in a layout that cannot be read slice by slice.
    """
    direct = [part for part in parts if part.converter is None]
    if direct:
        if len(parts) > 1:
            raise _twice(direct[0], next(part for part in parts if part is not direct[0]), views)
        view = views[direct[0].name]
        return Assembly(view, tuple(_misfits(view, shape)))
    converter = parts[0].converter
    assert converter is not None
    axis = _join_axis(converter, parts, views)
    width = len(converter.source_patterns)
    by_place: dict[tuple[int, int], Part] = {}
    for part in parts:
        other = by_place.setdefault((part.number, part.pattern), part)
        if other is not part:
            raise _twice(other, part, views)
    return _stacked(by_place, views, shape, axis, width)


def _join_axis(converter: Converter, parts: Sequence[Part], views: Mapping[str, View]) -> int:
    """Return the axis, counted inside one expert, along which the sources of a stack are joined."""
    steps = [(type(each).__name__, getattr(each, "dim", None)) for each in converter.operations]
    match steps:
        case [("MergeModulelist", 0)] if len(converter.source_patterns) == 1:
            return 0
        case [("MergeModulelist", 0), ("Concatenate", int(dim))] if dim > 0:
            return dim - 1
        case _:
            names = ", ".join(name for name, _ in steps)
            rule = f"the tensor becomes a parameter by {names}, which cannot be read slice by slice"
            source = str(next(views[parts[0].name].entries()).file)
            remedy = "load it with transformers and save it anew as safetensors"
            raise InputError(rule, source=source, field=parts[0].name, remedy=remedy)


def _stacked(
    by_place: Mapping[tuple[int, int], Part], views: Mapping[str, View], shape: tuple[int, ...], axis: int, width: int
) -> Assembly:
    """Return experts that are stored one by one, each in `width` tensors joined along `axis`."""
    some = next(iter(by_place.values()))
    count, *inner = shape
    inner[axis] //= width
    faults: list[Fault] = []
    places = {(number, pattern): None for number in range(count) for pattern in range(width)}.keys()
    for place in places:
        part = by_place.get(place)
        if part is None:
            faults.append(Fault(_sibling(some, *place), "the tensor is missing"))
        else:
            faults += _misfits(views[part.name], tuple(inner))
    for (number, _), part in by_place.items():
        if number >= count:
            rule = f"the model has {count} of them, numbered from 0"
            faults.append(Fault(part.name, rule, file=_file(views[part.name])))
    if not places <= by_place.keys():
        return Assembly(None, tuple(faults))
    rows = [[views[by_place[number, pattern].name] for pattern in range(width)] for number in range(count)]
    joined = [row[0] if width == 1 else JoinedView(tuple(row), axis) for row in rows]
    return Assembly(StackedView(tuple(joined)), tuple(faults))


def _misfits(view: View, shape: tuple[int, ...]) -> list[Fault]:
    file = _file(view)
    if isinstance(view, StoredView) and view.entry.dtype not in WEIGHT_FORMATS:
        wanted = "F32, BF16 or F16, FP8 with its scales in `weight_scale_inv`, or MXFP4"
        return [Fault(view.name, f"weights must be {wanted}", view.entry.dtype, file)]
    if view.shape != shape:
        return [Fault(view.name, f"must have the shape {list(shape)}", list(view.shape), file)]
    return []


def _sibling(part: Part, number: int, pattern: int) -> str:
    """Return the name in the files of another expert's, or another source's, part."""
    assert part.converter is not None
    name = _NUMBER.sub(f".{number}.", part.name)
    own, other = (part.converter.source_patterns[each].rpartition("*")[2] for each in (part.pattern, pattern))
    return name.removesuffix(own) + other if name.endswith(own) else name


def _twice(first: Part, second: Part, views: Mapping[str, View]) -> InputError:
    rule = f"holds {first.target} of the model, and so does {second.name}"
    return InputError(rule, source=_file(views[first.name]), field=first.name, remedy="keep one of them")


def _file(view: View) -> str:
    return str(next(iter(view.entries())).file)


def files_of(assemblies: Mapping[str, Assembly]) -> set[str]:
    """Return the names in the files of the tensors that some parameter uses."""
    views = [each.view for each in assemblies.values() if each.view is not None]
    return {entry.name for entry in chain.from_iterable(view.entries() for view in views)}
