"""Collectives inside a computation that is differentiated: the backward pass of each is its adjoint.

All ranks together compute one function, the sum of what each takes for its loss; a rank whose loss others compute too
takes its part of it. Then the gradient of a parameter is the sum over every rank that holds a copy of it, whichever
collectives lie between, and the modules need no copies at their inputs. Where nothing is differentiated, tensors are
reduced in place.

autograd runs backward in the opposite order of forward, so that ranks which call the same collectives in the same
order meet in the same order on the way back. Every member must therefore hand in a tensor that takes part in the
differentiation, if one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch.autograd import Function

from moiety.runtime.arena.trace import called

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.runtime.comm.group import Group


class _AllReduce(Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Group) -> torch.Tensor:  # noqa: ANN401 - torch's context
        ctx.group = group
        return group.all_reduce(tensor.contiguous().clone())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401 - as above
        return ctx.group.all_reduce(gradients[0].contiguous().clone()), None


class _AllGather(Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Group) -> torch.Tensor:  # noqa: ANN401 - as above
        ctx.group = group
        return group.all_gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401 - as above
        return ctx.group.reduce_scatter(gradients[0].flatten(0, 1)), None


class _ReduceScatter(Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Group) -> torch.Tensor:  # noqa: ANN401 - as above
        ctx.group = group
        return group.reduce_scatter(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401 - as above
        return ctx.group.all_gather(gradients[0]).flatten(0, 1), None


class _AllToAll(Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - as above
        rows: torch.Tensor,
        group: Group,
        sent: Sequence[int],
        received: Sequence[int],
    ) -> torch.Tensor:
        ctx.group, ctx.sent, ctx.received = group, sent, received
        return group.all_to_all(rows, sent, received).wait()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:  # noqa: ANN401 - as above
        return ctx.group.all_to_all(gradients[0], ctx.received, ctx.sent).wait(), None, None, None


def all_reduce(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """Return the sum of `tensor` over the members; `tensor` itself holds it where nothing is differentiated."""
    if group.size == 1 or not torch.is_grad_enabled():
        called(group.all_reduce, tensor)
        return tensor
    return _applied(_AllReduce, tensor, group)


def all_gather(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """Return the tensors of all members, which have equal shapes: [size, *shape]."""
    if not torch.is_grad_enabled():
        gathered = tensor.new_empty((group.size, *tensor.shape))
        called(group.all_gather, tensor, gathered)
        return gathered
    return _applied(_AllGather, tensor, group)


def reduce_scatter(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """Return this member's n rows of the sum of [size * n, ...] over the members: [n, ...]."""
    if not torch.is_grad_enabled():
        return group.reduce_scatter(tensor)
    return _applied(_ReduceScatter, tensor, group)


def all_to_all(rows: torch.Tensor, group: Group, sent: Sequence[int], received: Sequence[int]) -> torch.Tensor:
    """Return the rows that come of the members, [sum(received), ...], for `rows` [sum(sent), ...]; see `Group`."""
    return _applied(_AllToAll, rows, group, sent, received)


def _applied(function: type[Function], *arguments: object) -> torch.Tensor:
    return cast("torch.Tensor", cast("Any", function).apply(*arguments))
