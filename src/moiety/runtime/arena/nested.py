"""Tensors in tuples, lists and dictionaries: how an op has its arguments, and a step what it returns.

PyTorch's own trees (`torch.utils._pytree`) take what more there may be, and with it far more of the time that it
takes to note a step and to lay it into an arena.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable


def leaves(value: Any) -> list[Any]:  # noqa: ANN401 - a tensor, or what holds some
    """Return what is in `value`, in its order; `value` itself where that is no tuple, list or dictionary."""
    if isinstance(value, dict):
        value = tuple(cast("dict[Any, Any]", value).values())
    if not _holds_several(value):
        return [value]
    return [leaf for each in value for leaf in leaves(each)]


def replaced(kind: type, change: Callable[[Any], Any], value: Any) -> Any:  # noqa: ANN401 - as above
    """Return `value` with `change` of each thing of a kind in its place."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: replaced(kind, change, each) for key, each in cast("dict[Any, Any]", value).items()}
    if not _holds_several(value):
        return value
    items = [replaced(kind, change, each) for each in value]
    make: Callable[[list[Any]], Any] = getattr(cast("Any", type(value)), "_make", cast("Any", type(value)))
    return make(items)  # `_make`: a NamedTuple's


def _holds_several(value: object) -> bool:
    return isinstance(value, (tuple, list))
