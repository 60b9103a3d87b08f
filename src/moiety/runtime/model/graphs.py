"""Decoding on a GPU by CUDA graphs: a step is captured when its shape comes a second time in a row, replayed after it.

Until then PyTorch's ops are launched one by one, which at few tokens takes longer than what they compute.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from moiety.runtime.model.batch import BatchTensors
from moiety.runtime.model.kv_cache import CachedStep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moiety.runtime.experts.layer import ExpertLayer
    from moiety.runtime.model.batch import Batch
    from moiety.runtime.model.kv_cache import KvCache
    from moiety.runtime.seat import Seat
    from moiety.runtime.telemetry import Recorder

    Compute = Callable[[CachedStep, torch.Tensor | None], torch.Tensor]

_MOST_KEPT = 16
"""Captured steps of different shapes that are kept of a cache."""
_LENGTHS = 256
"""Cached tokens that a captured step looks at are a multiple of it, so that it holds for as many steps."""


class _Shape(NamedTuple):
    """What two steps over the same cache have in common if the kernels of one compute the other."""

    slots: tuple[int, ...]
    num_emitting: int
    most_cached: int


class _Inputs:
    """What a captured step reads: one buffer on the device, written whole before each replay."""

    def __init__(self, batch: Batch, received: torch.Tensor | None, device: torch.device) -> None:
        parts = batch.numbers()
        self._numbers = torch.empty(sum(len(each) for each in parts), dtype=torch.int64, device=device)
        ids, positions, *others = torch.split(self._numbers, [len(each) for each in parts])
        self._tensors = BatchTensors(ids, positions[None], *others)
        self.received = None if received is None else torch.empty_like(received)

    def take(self, batch: Batch, received: torch.Tensor | None) -> None:
        """Hold another batch of the same shape."""
        self._numbers.copy_(torch.tensor([number for part in batch.numbers() for number in part]))
        batch.read_from(self._tensors)
        if self.received is not None and received is not None:
            self.received.copy_(received)


class _CapturedStep:
    """The graphs of a step's two passages, through the layers and through the head, and what they return."""

    def __init__(self, inputs: _Inputs) -> None:
        self.inputs = inputs
        self.passages: list[tuple[torch.cuda.CUDAGraph, torch.Tensor]] = []

    def replay(self, passage: int) -> torch.Tensor:
        """Compute a passage; what it returns stays until the next step."""
        graph, result = self.passages[passage]
        graph.replay()
        return result


class GraphedDecoding:
    """The decoding steps of a rank whose stage is itself alone."""

    def __init__(self, device: torch.device, recorder: Recorder) -> None:
        self._device, self._recorder = device, recorder
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        """The graphs replay one after the other, so they share what they compute in; it goes with the last of them."""
        self._captured: WeakKeyDictionary[KvCache, dict[_Shape, _CapturedStep]] = WeakKeyDictionary()
        """The one that was taken last comes last. Graphs read a cache where it lies, and go with it."""
        self._under_way: _CapturedStep | None = None
        self._last: _Shape | None = None
        self._obstacle: str | None = None
        self._num_steps = self._num_replayed = self._size_bytes = 0

    def forget(self) -> None:
        """Capture every step anew: what they are computed with has changed."""
        self._captured.clear()
        self._under_way = self._last = None

    def document(self) -> dict[str, object]:
        """Return how many steps were computed, how many by graphs, what kept others out, and the bytes of the graphs.

        Bytes are those by which the memory that PyTorch holds grew while steps were captured.
        """
        return {
            "decode_steps": self._num_steps,
            "decode_steps_in_graphs": self._num_replayed,
            "obstacle": self._obstacle,
            "size_bytes": self._size_bytes,
        }

    def hidden(self, batch: Batch, cache: KvCache, received: torch.Tensor | None, compute: Compute) -> torch.Tensor:
        """Return what `compute` returns for a step of this batch; it stays until the next step."""
        self._num_steps += 1
        self._under_way = None
        longest = max(each.end for each in batch.segments)
        most_cached = min(-(-longest // _LENGTHS) * _LENGTHS, cache.capacity)
        shape = _Shape(tuple(each.slot for each in batch.segments), batch.num_emitting, most_cached)
        was, self._last = self._last, shape
        steps = self._captured.setdefault(cache, {})
        if self._obstacle is not None or self._recorder.recording or (shape not in steps and was != shape):
            return compute(CachedStep(batch, cache), received)
        captured = steps.pop(shape, None) or _CapturedStep(_Inputs(batch, received, self._device))
        batch.most_cached = most_cached
        captured.inputs.take(batch, received)
        if not captured.passages:
            step = CachedStep(batch, cache)
            self._capture(captured, lambda: compute(step, captured.inputs.received))
        if not captured.passages:
            return compute(CachedStep(batch, cache), received)
        while len(steps) >= _MOST_KEPT:
            steps.pop(next(iter(steps)))
        steps[shape] = self._under_way = captured
        self._num_replayed += 1
        return captured.replay(0)

    def logits(self, batch: Batch, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return what `compute` returns for the states that `hidden` has returned for this batch."""
        del batch
        captured = self._under_way
        if captured is None:
            return compute()
        if len(captured.passages) == 1:
            self._capture(captured, compute)
        return captured.replay(1) if len(captured.passages) > 1 else compute()

    def _capture(self, captured: _CapturedStep, compute: Callable[[], torch.Tensor]) -> None:
        """Add a passage, unless it cannot be captured: then say why, and capture nothing again."""
        before = torch.cuda.memory_reserved(self._device)
        if not captured.passages and not any(self._captured.values()):
            self._pool = torch.cuda.graph_pool_handle()
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                captured.passages.append((graph, _under_capture(graph, self._pool, compute)))
        except RuntimeError as error:
            self._obstacle = f"a step cannot be captured: {str(error).splitlines()[0]}"
        current.wait_stream(self._stream)
        self._size_bytes += max(torch.cuda.memory_reserved(self._device) - before, 0)


def obstacle_to_graphs(seat: Seat, experts: Mapping[int, ExpertLayer]) -> str | None:
    """Return why steps of a seat cannot be captured; None where they can."""
    if seat.strategy.gpus_per_stage > 1:
        return "its stage has several ranks, which exchange tokens or sums within a step"
    waiting = sorted({each.held.backend.name for each in experts.values() if not each.held.backend.stays_on_device})
    if waiting:
        return f"its experts are computed by {', '.join(waiting)}, which waits for the router's choice"
    return None


def _under_capture(graph: torch.cuda.CUDAGraph, pool: Any, compute: Callable[[], torch.Tensor]) -> torch.Tensor:  # noqa: ANN401 - torch's
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        result = compute()
    except BaseException:
        with suppress(RuntimeError):  # it says again what has been said
            graph.capture_end()
        raise
    graph.capture_end()
    return result
