"""Trace: the calls of a step as it is computed, and the memory that they write to."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moiety.runtime.arena.into import Call, calls_into, common_format, in_place_calls, is_constant, is_empty

if TYPE_CHECKING:
    from collections.abc import Callable

_own = threading.local()


class Trace(TorchDispatchMode):
    """Notes the ops of the block that it is entered for, and what is called through `called`.

    Views are not noted: they are found again from their place in what they are views of. A step whose course
    depends on the content of a tensor cannot be noted: `obstacle` says so.
    """

    def __init__(self, most_tokens: int = 0) -> None:
        """`most_tokens`: that any attention group may have in the steps that are noted here."""
        super().__init__()  # pyright: ignore[reportUnknownMemberType] - torch leaves it untyped
        self.most_tokens = most_tokens
        self.passages: list[tuple[list[Call], Any]] = []
        """Parts of the step that were noted one after the other: the calls of each, and what it returned."""
        self.made: dict[int, torch.UntypedStorage] = {}
        """Memory that the step has asked for, by address; held, so that no address comes twice."""
        self.obstacle: str | None = None
        self._calls: list[Call] = []
        self.is_paused = False
        """Whether a function is being called that is noted as a whole."""

    def noted(self, compute: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it returns
        """Return what the next passage of the step returns, and note it."""
        self._calls = []
        _own.trace = self
        try:
            with self:
                result = compute()
        finally:
            _own.trace = None
        self.passages.append((self._calls, result))
        return result

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an overload of PyTorch
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the op returns
        options = kwargs or {}
        if self.is_paused:
            return func(*args, **options)
        if func._can_decompose():  # noqa: SLF001 - PyTorch's name  # one op that is several
            with self:
                result = func.decompose(*args, **options)
            if result is not NotImplemented:
                return result
        common = common_format(func, args)
        if common is not None:
            with self:
                args = (args[0].to(common), args[1].to(common), *args[2:])
        result = func(*args, **options)
        self._note(func, args, options, result)
        return result

    def note(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        """Call a function and note that, not what it does."""
        was_paused, self.is_paused = self.is_paused, True
        try:
            function(*arguments)
        finally:
            self.is_paused = was_paused
        if not was_paused:
            self._calls.append(Call(function, arguments, {}))

    def _note(self, op: Any, arguments: tuple[Any, ...], options: dict[str, Any], result: object) -> None:  # noqa: ANN401 - as above
        if _looks_at_content(op, arguments):
            self.obstacle = f"{op} depends on the content of a tensor"
        outputs = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        if op._schema.is_mutable:  # noqa: SLF001 - where PyTorch says it
            self._calls += in_place_calls(op, arguments, options)
            return
        held = {_address(each) for each in tree_leaves((arguments, options)) if isinstance(each, torch.Tensor)}
        fresh = [each for each in outputs if _address(each) not in held]
        if not fresh or is_constant(op):
            return
        assert len(fresh) == len(outputs), f"{op} returns a view beside a new tensor"
        for each in fresh:
            self.made[_address(each)] = each.untyped_storage()
        if not is_empty(op):
            self._calls += calls_into(op, arguments, options, fresh)


def is_noting() -> bool:
    """Whether what this thread computes now is noted op by op."""
    trace: Trace | None = getattr(_own, "trace", None)
    return trace is not None and not trace.is_paused


def noted_most_tokens() -> int:
    """Return the most tokens that any attention group may have in the step that this thread notes."""
    trace: Trace | None = getattr(_own, "trace", None)
    assert trace is not None, "asked of a step that is noted"
    return trace.most_tokens


def called(function: Callable[..., object], *arguments: Any) -> None:  # noqa: ANN401 - whatever the function takes
    """Call a function that writes into its arguments, in a step that may be noted.

    What it does is not looked into: it is called again in every step, with tensors in the same places of the arena.
    So it may depend on the content of tensors, and on objects that change from step to step.
    """
    trace: Trace | None = getattr(_own, "trace", None)
    if trace is None:
        function(*arguments)
    else:
        trace.note(function, arguments)


def _address(tensor: torch.Tensor) -> int:
    return cast("Any", tensor.untyped_storage())._cdata  # noqa: SLF001 - what tells storages apart, empty ones too


def _looks_at_content(op: Any, arguments: tuple[Any, ...]) -> bool:  # noqa: ANN401 - an overload of PyTorch
    """Return whether the content of a tensor decides what an op returns the shape or the number of."""
    if op is torch.ops.aten.index.Tensor:
        return any(each is not None and each.dtype in {torch.bool, torch.uint8} for each in arguments[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(op.tags))
