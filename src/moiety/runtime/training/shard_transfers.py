"""What FSDP2 sends for sharded parameters: sent beside the computation, counted, and timed where it is waited for."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_distributed: Any = dist  # its functions have no complete types
_Work: Any = dist.Work
_all_gather: Any = getattr(dist, "all_gather_single", None) or _distributed.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or _distributed.reduce_scatter_tensor
"""Their names until torch 2.12, and from then on."""


@dataclass(slots=True)
class ShardTransfer:
    """A gather of a layer's parameters, or a scatter of its gradients' sums; times are None until they are known."""

    kind: Literal["gather", "scatter"]
    num_bytes: int
    """Of the gathered tensor, or of the one whose sums are scattered."""
    begin_s: float | None = None
    """When it was asked for, or when the one before it ended, whichever is later."""
    end_s: float | None = None
    waited_from_s: float | None = None
    """When the rank had nothing else to do."""

    @property
    def seconds(self) -> float:
        """Seconds that it was under way."""
        return 0.0 if self.begin_s is None or self.end_s is None else self.end_s - self.begin_s

    @property
    def exposed_s(self) -> float:
        """Seconds that the rank waited for it, and for those before it."""
        return 0.0 if self.waited_from_s is None or self.end_s is None else max(self.end_s - self.waited_from_s, 0.0)


class ShardTransfers:
    """The gathers and scatters of a rank, made in FSDP2's place (`set_custom_all_gather` and its kin).

    On CPUs they go on in a thread, one after the other in the order in which they were asked for, while the rank
    computes: FSDP2 leaves that to streams, which CPUs do not have. The scatter of a layer is then under way while the
    next one computes, where nobody touches what comes of it before the step ends (`sums_stay`). On GPUs all is left to
    streams; what is sent is counted, and not timed.
    """

    def __init__(self, *, sums_stay: bool, scatters: int = 1) -> None:
        """`sums_stay`: gradients have the format that they are summed in, and are the sums' own memory.

        `scatters`: of a layer, as many of which may be under way at a time.
        """
        self.made: list[ShardTransfer] = []
        """Since the last `forget`, in order."""
        self._sums_stay, self._scatters = sums_stay, scatters
        self._scattering: deque[_UnderWay] = deque()
        self._asked: SimpleQueue[Callable[[float], float]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return room for a transfer."""
        return torch.empty(*size, dtype=dtype, device=device)

    def gather(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: object, **_: object) -> object:
        """Begin to gather a layer; return what FSDP2 waits for, None where streams take care of it."""
        return self._begin(
            ShardTransfer("gather", output_tensor.nbytes), _all_gather, (output_tensor, input_tensor), {"group": group}
        )

    def scatter(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: object, op: object, **_: object
    ) -> None:
        """Begin to sum a layer's gradients, each rank its part, once those of the layer before are there."""
        while len(self._scattering) >= self._scatters:
            self._scattering.popleft().wait()
        begun = self._begin(
            ShardTransfer("scatter", input_tensor.nbytes),
            _reduce_scatter,
            (output_tensor, input_tensor),
            {"group": group, "op": op},
        )
        if begun is not None:
            self._scattering.append(begun)
        if not self._sums_stay:
            self.finish()

    def finish(self) -> None:
        """Wait for the scatters that are under way."""
        while self._scattering:
            self._scattering.popleft().wait()

    def totals(self) -> dict[str, float | None]:
        """Return the bytes and, but for GPUs, the seconds of what was sent since the last `forget`."""
        is_timed = all(each.end_s is not None for each in self.made)
        return {
            "gathered_bytes": sum(each.num_bytes for each in self.made if each.kind == "gather"),
            "scattered_bytes": sum(each.num_bytes for each in self.made if each.kind == "scatter"),
            "transfer_s": sum(each.seconds for each in self.made) if is_timed else None,
            "exposed_s": sum(each.exposed_s for each in self.made) if is_timed else None,
        }

    def forget(self) -> None:
        """Count from here on."""
        self.made = []

    def _begin(
        self,
        transfer: ShardTransfer,
        collective: Callable[..., object],
        tensors: tuple[torch.Tensor, torch.Tensor],
        options: dict[str, object],
    ) -> _UnderWay | None:
        self.made.append(transfer)
        if tensors[0].is_cuda:
            collective(*tensors, **options)
            return None
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="transfers of shards", daemon=True)
            self._thread.start()
        under_way = _UnderWay(transfer, lambda: collective(*tensors, **options))
        self._asked.put(under_way.send)
        return under_way

    def _run(self) -> None:
        ended_s = 0.0
        while True:
            send = self._asked.get()
            ended_s = send(ended_s)
            del send


class _UnderWay(_Work):
    """A transfer in the thread, as FSDP2 waits for it."""

    def __init__(self, transfer: ShardTransfer, send: Callable[[], object]) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType] - torch leaves it untyped
        self._transfer = transfer
        self._send: Callable[[], object] | None = send
        self._asked_s = time.perf_counter()
        self._ended = threading.Event()
        self._error: Exception | None = None

    def send(self, free_s: float) -> float:
        """Send it, in the thread, which ended the one before at `free_s`; return when it is there."""
        assert self._send is not None, "it is sent once"
        try:
            self._send()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
        self._send = None  # the rank is to be the last to hold its tensors
        end_s = time.perf_counter()
        self._transfer.begin_s, self._transfer.end_s = max(self._asked_s, free_s), end_s
        self._ended.set()
        return end_s

    def wait(self, timeout: object = None) -> bool:
        """Wait for its end; raise what it ended with."""
        del timeout  # the group has one of its own
        if self._transfer.waited_from_s is None:
            self._transfer.waited_from_s = time.perf_counter()
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return True
