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
_counts: Any = torch._C  # noqa: SLF001 - where torch has it  # pyright: ignore[reportPrivateUsage]
_LETS_GO_S, _LOOKS_EVERY_S = 0.1, 1e-5
"""The longest that gloo is waited for, which takes microseconds on cores of its own, and how often one looks."""


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
    computes: FSDP2 leaves that to streams, which CPUs do not have. The scatters of a layer are then under way while the
    next one computes, where nobody touches what comes of them before the step ends (`sums_stay`). On GPUs all is left
    to streams; what is sent is counted, and not timed.
    """

    def __init__(self, *, sums_stay: bool) -> None:
        """`sums_stay`: gradients have the format that they are summed in, and are the sums' own memory."""
        self.made: list[ShardTransfer] = []
        """Since the last `forget`, in order."""
        self._sums_stay = sums_stay
        self._scattering: deque[_UnderWay] = deque()
        self._asked: SimpleQueue[Callable[[float], float]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return room for a transfer."""
        return torch.empty(*size, dtype=dtype, device=device)

    def allocate_for_next(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return room for the first scatter of a layer, once those of the layer before are there.

        FSDP2 has let go of their rooms by then, so that never more than one layer's are there.
        """
        self.finish()
        return self.allocate(size, dtype=dtype, device=device)

    def gather(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: object, **_: object) -> object:
        """Begin to gather a layer; return what FSDP2 waits for, None where streams take care of it."""
        tensors = (output_tensor, input_tensor)
        transfer = ShardTransfer("gather", output_tensor.nbytes)
        return self._begin(transfer, _all_gather, tensors, {"group": group}, tensors)

    def scatter(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: object, op: object, **_: object
    ) -> None:
        """Begin to sum a layer's gradients, each rank its part."""
        tensors = (output_tensor, input_tensor)
        transfer = ShardTransfer("scatter", input_tensor.nbytes)
        rooms = tensors[1:] if self._sums_stay else tensors
        begun = self._begin(transfer, _reduce_scatter, tensors, {"group": group, "op": op}, rooms)
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
        rooms: Sequence[torch.Tensor],
    ) -> _UnderWay | None:
        """Begin a transfer; `rooms` are those of its tensors that nobody else takes views of until it has ended."""
        self.made.append(transfer)
        if tensors[0].is_cuda:
            collective(*tensors, **options)
            return None
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="transfers of shards", daemon=True)
            self._thread.start()
        under_way = _UnderWay(transfer, lambda: _send(collective, tensors, options, rooms))
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
        self._send = None  # here, so that the rank's own thread is the last to hold its tensors
        if self._error is not None:
            raise self._error
        return True


def _send(
    collective: Callable[..., object],
    tensors: tuple[torch.Tensor, torch.Tensor],
    options: dict[str, object],
    rooms: Sequence[torch.Tensor],
) -> None:
    """Send, and return when gloo's own thread, which tells of the end before, has let go of the rooms.

    It would hold them while the rank takes the next ones: longer, where more threads are busy than there are cores.
    """
    storages = [each.untyped_storage() for each in rooms]
    held = [_num_holders(each) for each in storages]
    collective(*tensors, **options)
    end_s = time.perf_counter() + _LETS_GO_S
    while (
        any(now > before for now, before in zip(map(_num_holders, storages), held, strict=True))
        and time.perf_counter() < end_s
    ):
        time.sleep(_LOOKS_EVERY_S)


def _num_holders(storage: torch.UntypedStorage) -> int:
    place: Any = storage
    return _counts._storage_Use_Count(place._cdata)  # noqa: SLF001 - torch shows it nowhere else
