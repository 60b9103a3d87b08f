"""Tape: a step as calls whose tensors lie at packed offsets of an arena."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from moiety.cost.arena import Lifetime, aligned, live_peak, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moiety.runtime.arena.trace import Trace


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor of a step lies."""

    buffer: int
    """Address of the storage that it had when the step was noted."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset_bytes: int
    """In its buffer."""


class Tape:
    """The calls of a noted step, and where in an arena its tensors lie."""

    def __init__(self, trace: Trace) -> None:
        sizes = {address: storage.nbytes() for address, storage in trace.made.items()}
        self._passages = [(_placed(calls, sizes), _placed(result, sizes)) for calls, result in trace.passages]
        lifetimes = _lifetimes([step for calls, result in self._passages for step in (*calls, result)], sizes)
        for _, result in self._passages:
            lifetimes = _kept(lifetimes, result)
        self.buffers = pack(lifetimes)
        """When each piece of memory is used, in calls of the step (what a passage returns counts as one), and where."""
        self._offsets = {int(each.name): each.offset_bytes for each in self.buffers}
        self.size_bytes = max((each.offset_bytes + each.size_bytes for each in self.buffers), default=0)
        """What the tape needs of an arena."""
        self.live_bytes = live_peak(lifetimes)
        """The most that lives at a time, which no packing can undercut."""
        self.arena: torch.Tensor | None = None
        """Where its tensors lie."""
        self.bound: list[tuple[list[Callable[[], Any]], Any]] = []
        """The calls of each passage with their tensors in the arena, and what it returns."""

    def bind(self, arena: torch.Tensor | None) -> None:
        """Lay the tensors of the step into `arena` [bytes]; None: let go of the one that they lie in."""
        if self.arena is arena:
            return
        self.arena, self.bound = arena, []
        if arena is None:
            return
        views: dict[_Place, torch.Tensor] = {}

        def view(place: _Place) -> torch.Tensor:
            if place not in views:
                views[place] = _view(arena, self._offsets[place.buffer] + place.offset_bytes, place)
            return views[place]

        for calls, result in self._passages:
            bound = [partial(each.function, *_map(view, each.arguments), **_map(view, each.options)) for each in calls]
            self.bound.append((bound, _map(view, result)))

    def play(self, passage: int) -> Any:  # noqa: ANN401 - what the step returned
        """Compute a passage in the arena; what it returns lies there until the step is played again."""
        calls, result = self.bound[passage]
        for call in calls:
            call()
        return result


def _map(view: Callable[[_Place], torch.Tensor], value: Any) -> Any:  # noqa: ANN401 - tensors in lists, tuples, mappings
    return tree_map_only(_Place, view, value)


def _placed(value: Any, sizes: Mapping[int, int]) -> Any:  # noqa: ANN401 - as above
    """Return `value` with the tensors whose memory the step asked for replaced by their places."""

    def place(tensor: torch.Tensor) -> torch.Tensor | _Place:
        address = cast("Any", tensor.untyped_storage())._cdata  # noqa: SLF001 - what tells storages apart
        if address not in sizes:
            return tensor
        offset = int(tensor.storage_offset()) * tensor.element_size()
        return _Place(address, tensor.dtype, tuple(tensor.shape), tensor.stride(), offset)

    return tree_map_only(torch.Tensor, place, value)


def _lifetimes(steps: list[Any], sizes: Mapping[int, int]) -> list[Lifetime]:
    """Return from where to where each buffer is used in the calls and results of a step, in their order."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, step in enumerate(steps):
        for each in tree_leaves(step):
            if isinstance(each, _Place):
                first.setdefault(each.buffer, index)
                last[each.buffer] = index
    return [Lifetime(str(each), aligned(sizes[each]), first[each], last[each]) for each in first]


def _kept(lifetimes: list[Lifetime], result: Any) -> list[Lifetime]:  # noqa: ANN401 - as above
    """Return the lifetimes, those of a result to the end of the step."""
    end = max((each.last_op for each in lifetimes), default=0)
    kept = {str(each.buffer) for each in tree_leaves(result) if isinstance(each, _Place)}
    return [each._replace(last_op=end) if each.name in kept else each for each in lifetimes]


def _view(arena: torch.Tensor, offset_bytes: int, place: _Place) -> torch.Tensor:
    item = place.dtype.itemsize
    whole = arena[: arena.shape[0] // item * item].view(place.dtype)
    return whole.as_strided(place.shape, place.stride, whole.storage_offset() + offset_bytes // item)
