"""Calls that write what an op of PyTorch returns into given tensors, and ask the allocator for nothing by it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

aten: Any = torch.ops.aten

_EMPTY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
_CONSTANT = {aten.scalar_tensor, aten.arange, aten.lift_fresh_copy}
_FILLED = {
    aten.zeros: 0,
    aten.zeros_like: 0,
    aten.new_zeros: 0,
    aten.ones: 1,
    aten.ones_like: 1,
    aten.new_ones: 1,
}
_COPIES = {aten.clone, aten._to_copy}  # noqa: SLF001 - PyTorch's name for `to`
_WITH_NUMBER: dict[Any, Callable[..., Any]] = {
    aten.add: torch.add,
    aten.sub: torch.sub,
    aten.mul: torch.mul,
    aten.div: torch.div,
    aten.floor_divide: torch.floor_divide,
    aten.remainder: torch.remainder,
    aten.bitwise_and: torch.bitwise_and,
    aten.bitwise_left_shift: torch.bitwise_left_shift,
    aten.bitwise_right_shift: torch.bitwise_right_shift,
    aten.__lshift__: torch.bitwise_left_shift,
    aten.__rshift__: torch.bitwise_right_shift,
    aten.eq: torch.eq,
    aten.ne: torch.ne,
    aten.lt: torch.lt,
    aten.le: torch.le,
    aten.gt: torch.gt,
    aten.ge: torch.ge,
}
"""Elementwise ops of a tensor and a number, which PyTorch makes a tensor of at every call."""

_QUICK = frozenset(
    {
        *("_softmax", "add", "addmm", "baddbmm", "bmm", "cat", "clamp", "clamp_min", "clamp_max", "cos", "cumsum"),
        *("div", "eq", "exp", "gather", "ge", "gt", "index_select", "le", "lt", "maximum", "minimum", "mm", "mul"),
        *("ne", "neg", "pow", "reciprocal", "rsqrt", "searchsorted", "sigmoid", "sin", "sqrt", "sub", "sum", "tanh"),
        *("topk", "where"),
    }
)
"""Ops whose function in `torch` takes the arguments of their overloads, and `out`."""


class Call(NamedTuple):
    """A function with its arguments; tensors among them, also in lists, are what a tape moves into its arena."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


def is_empty(op: Any) -> bool:  # noqa: ANN401 - an overload of PyTorch
    """Return whether an op makes a tensor and computes nothing."""
    return op.overloadpacket in _EMPTY


def is_constant(op: Any) -> bool:  # noqa: ANN401 - as above
    """Return whether an op makes a tensor of its arguments alone, which is the same in every step."""
    return op.overloadpacket in _CONSTANT


def common_format(op: Any, arguments: tuple[Any, ...]) -> torch.dtype | None:  # noqa: ANN401 - as above
    """Return the number format that an op of two tensors converts them to, in memory of its own; None: it does not."""
    tensors = [each for each in arguments[:2] if isinstance(each, torch.Tensor) and each.ndim]
    if op.overloadpacket not in _WITH_NUMBER or len({each.dtype for each in tensors}) <= 1:
        return None
    return torch.result_type(*tensors)


def calls_into(  # noqa: C901, PLR0911 - one way for each kind of op
    op: Any,  # noqa: ANN401 - as above
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    outputs: Sequence[torch.Tensor],
) -> list[Call]:
    """Return calls that leave in `outputs` what `op` returns for these arguments.

    Where PyTorch has no kernel that writes there, its result is made and copied: right, but allocated.
    """
    packet, out = op.overloadpacket, outputs[0]
    if packet in _COPIES:
        return [Call(torch.Tensor.copy_, (out, arguments[0]), {})]
    if packet in _FILLED:
        return [Call(torch.Tensor.fill_, (out, _FILLED[packet]), {})]
    if packet in {aten.full, aten.full_like, aten.new_full}:
        return [Call(torch.Tensor.fill_, (out, arguments[1 if packet is not aten.new_full else 2]), {})]
    if op is aten.mean.dim:
        return _mean(out, *arguments)
    if packet is aten.embedding:
        weight, index = arguments[:2]
        return [Call(torch.index_select, (weight, 0, index.view(-1)), {"out": out.view(-1, weight.shape[1])})]
    if packet is aten.masked_fill:
        filled = Call(torch.Tensor.masked_fill_, (out, *arguments[1:]), {})
        return [Call(torch.Tensor.copy_, (out, arguments[0]), {}), filled]
    if packet in _WITH_NUMBER and not isinstance(arguments[1], torch.Tensor):
        second = _as_tensor(arguments[1], torch.result_type(arguments[0], arguments[1]))
        return [Call(_WITH_NUMBER[packet], (arguments[0], second), {**options, "out": out})]
    if packet is aten.rsub and not isinstance(arguments[1], torch.Tensor):
        first = _as_tensor(arguments[1], torch.result_type(arguments[0], arguments[1]))
        return [Call(torch.sub, (first, arguments[0]), {"out": out})]
    variant = _out_variant(op)
    if variant is None:
        return [Call(_copied, (op, arguments, options, list(outputs)), {})]
    overload, names = variant
    function, options = _quick(overload), {**options}
    if function is None:
        return [Call(overload, arguments, {**options, **dict(zip(names, outputs, strict=True))})]
    given = tuple(outputs) if len(outputs) > 1 else out
    return [Call(function, arguments, {**options, "out": given})]


def in_place_calls(op: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> list[Call]:  # noqa: ANN401 - as above
    """Return calls that do what an op does that changes its arguments."""
    name = op.overloadpacket.__name__
    functional = getattr(aten, name[:-1], None) if name.endswith("_") else None
    if functional in _WITH_NUMBER and not isinstance(arguments[1], torch.Tensor):
        second = _as_tensor(arguments[1], torch.result_type(arguments[0], arguments[1]))
        return [Call(_WITH_NUMBER[functional], (arguments[0], second), {**options, "out": arguments[0]})]
    return [Call(op, arguments, options)]


def _mean(out: torch.Tensor, tensor: torch.Tensor, dims: list[int], keepdim: bool = False) -> list[Call]:  # noqa: FBT001, FBT002 - PyTorch's argument
    """Return a mean as PyTorch's kernel takes it: the sum, divided by the number of items."""
    count = _as_tensor(tensor.numel() // max(out.numel(), 1), out.dtype)
    return [
        Call(torch.sum, (tensor, dims, keepdim), {"out": out}),
        Call(torch.div, (out, count), {"out": out}),
    ]


def _as_tensor(number: float, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(number, dtype=dtype)


@cache
def _out_variant(op: Any) -> tuple[Any, list[str]] | None:  # noqa: ANN401 - as above
    """Return the overload that writes what `op` returns, where it has a kernel of its own, and its outputs' names."""
    wanted = [(each.name, str(each.type)) for each in op._schema.arguments]  # noqa: SLF001 - where PyTorch says it
    packet = op.overloadpacket
    for name in packet.overloads():
        overload = getattr(packet, name)
        arguments = overload._schema.arguments  # noqa: SLF001 - as above
        outs = [each.name for each in arguments if each.is_out]
        if not outs or [(each.name, str(each.type)) for each in arguments if not each.is_out] != wanted:
            continue
        if cast("Any", torch)._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "CPU"):  # noqa: SLF001 - as above
            return overload, outs
    return None


def _quick(overload: Any) -> Callable[..., Any] | None:  # noqa: ANN401 - as above
    """Return PyTorch's own function of that name, which is called in a fraction of the time that the overload takes."""
    name: str = overload.overloadpacket.__name__
    if name == "silu":
        return cast("Callable[..., Any]", cast("Any", torch)._C._nn.silu)  # noqa: SLF001 - functional.silu has no `out`
    return getattr(torch, name) if name in _QUICK else None


def _copied(op: Any, arguments: tuple[Any, ...], options: dict[str, Any], outputs: list[torch.Tensor]) -> None:  # noqa: ANN401 - as above
    results = op(*arguments, **options)
    for out, result in zip(outputs, [results] if isinstance(results, torch.Tensor) else results, strict=True):
        out.copy_(result)
