"""TorchGroup: a group whose tensors travel over one of PyTorch's own process groups: NCCL on GPUs, gloo on CPUs."""

from __future__ import annotations

import time
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from moiety.runtime.comm.group import Group
from moiety.runtime.comm.peer_lost import PeerLost
from moiety.runtime.comm.priority import Priority
from moiety.runtime.comm.reduction import widened
from moiety.runtime.comm.watch import SLICE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch._C._distributed_c10d import Store, Work

    from moiety.runtime.comm.ledger import Ledger
    from moiety.runtime.comm.mesh import Mesh
    from moiety.runtime.comm.pending import Pending
    from moiety.runtime.comm.watch import Watch

_TIMED_OUT = "Operation timed out"
"""What gloo says where the wait has ended and the work goes on."""


class ProcessGroup(Protocol):
    """What is used of a process group of PyTorch's."""

    def allreduce(self, tensors: list[torch.Tensor], /) -> Work: ...  # noqa: D102  # as in PyTorch, and so on
    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], /) -> Work: ...  # noqa: D102
    def reduce_scatter(self, outputs: list[torch.Tensor], inputs: list[list[torch.Tensor]], /) -> Work: ...  # noqa: D102
    def alltoall_base(  # noqa: D102
        self, output: torch.Tensor, rows: torch.Tensor, received: list[int], sent: list[int], /
    ) -> Work: ...
    def broadcast(self, tensor: torch.Tensor, root: int, /) -> Work: ...  # noqa: D102
    def send(self, tensors: list[torch.Tensor], target: int, tag: int, /) -> Work: ...  # noqa: D102
    def recv(self, tensors: list[torch.Tensor], source: int, tag: int, /) -> Work: ...  # noqa: D102
    def abort(self) -> None: ...  # noqa: D102
    def shutdown(self) -> None: ...  # noqa: D102


def nccl_process_group(store: Store, index: int, size: int, priority: Priority, timeout_s: float) -> ProcessGroup:
    """Return an NCCL communicator; exchanges get a stream that the GPU prefers."""
    from torch._C._distributed_c10d import ProcessGroupNCCL  # noqa: PLC0415  # a build for CPUs has none

    options = ProcessGroupNCCL.Options(is_high_priority_stream=priority == Priority.EXCHANGE)
    options._timeout = timedelta(seconds=timeout_s)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no other way
    return cast("ProcessGroup", ProcessGroupNCCL(store, index, size, options))


def gloo_process_group(store: Store, index: int, size: int, address: str, timeout_s: float) -> ProcessGroup:
    """Return a group of gloo's, for tensors on CPUs, whose members listen on `address`."""
    gloo: Any = import_module("torch.distributed").ProcessGroupGloo  # its options have no types
    options = gloo._Options()  # noqa: SLF001  # no other way
    options._devices = [gloo.create_device(hostname=address)]  # noqa: SLF001  # no other way
    options._timeout = timedelta(seconds=timeout_s)  # noqa: SLF001  # no other way
    return cast("ProcessGroup", gloo(store, index, size, options))


class PendingWork:
    """Work of a process group; on a GPU, to wait for it is to let the current stream wait, not the host."""

    def __init__(
        self,
        work: Work,
        tensors: tuple[torch.Tensor, torch.Tensor],
        finish: Callable[[], None],
        tell: Callable[[float], None] | None,
    ) -> None:
        """`tensors`: what `wait` returns, and what must live until then."""
        self._work, self._tensors = work, tensors
        self._finish, self._tell = finish, tell

    def wait(self) -> torch.Tensor:
        """Return the tensor, filled as far as the current stream can tell."""
        self._finish()
        if self._tell is not None:
            self._tell(time.perf_counter())
        return self._tensors[0]

    def done(self) -> bool:
        """Return whether the work has ended."""
        return self._work.is_completed()


class TorchGroup(Group):
    """A group with a process group for tensors on devices of one type; all others travel between the hosts.

    Sums are the process group's, in an order of its own: the same bits on every member, in FP32 for BF16 and FP16, and
    rounded once. On CPUs a wait ends like that of any group; on GPUs a peer that is gone or silent ends the process
    group after its timeout, with its own error.
    """

    def __init__(
        self,
        ranks: tuple[int, ...],
        index: int,
        mesh: Mesh,
        ledger: Ledger,
        device_type: str,
        process_group: ProcessGroup,
        watch: Watch,
    ) -> None:
        super().__init__(ranks, index, mesh, ledger)
        self._device_type = device_type
        self._process_group = process_group
        self._watch = watch

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace `tensor` by its sum over the members, and return it."""
        if not self._carries(tensor):
            return super().all_reduce(tensor)
        start_s = time.perf_counter()
        wide = widened(tensor).contiguous()
        self._finish(self._process_group.allreduce([wide]))
        self._record_ring("all_reduce", start_s, 2 * wide.nbytes // self.size)
        return tensor if wide is tensor else tensor.copy_(wide)

    def all_gather(self, tensor: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tensors of all members, which have equal shapes: [size, *shape]; in `out` where there is one."""
        if not self._carries(tensor):
            return super().all_gather(tensor, out)
        start_s = time.perf_counter()
        gathered = tensor.new_empty((self.size, *tensor.shape)) if out is None else out
        self._finish(self._process_group.allgather([list(gathered)], [tensor.contiguous()]))
        self._record_ring("all_gather", start_s, tensor.nbytes)
        return gathered

    def reduce_scatter(self, tensor: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return this member's n rows of the sum of [size * n, ...] over the members: [n, ...]; in `out`, if any."""
        if not self._carries(tensor):
            return super().reduce_scatter(tensor, out)
        start_s = time.perf_counter()
        wide = widened(tensor).contiguous()
        num_rows = tensor.shape[0] // self.size
        shares = [wide.narrow(0, place * num_rows, num_rows) for place in range(self.size)]
        own = torch.empty_like(shares[self.index])
        self._finish(self._process_group.reduce_scatter([own], [shares]))
        self._record_ring("reduce_scatter", start_s, own.nbytes)
        return own.to(tensor.dtype) if out is None else out.copy_(own)

    def all_to_all(
        self, rows: torch.Tensor, sent: Sequence[int], received: Sequence[int], out: torch.Tensor | None = None
    ) -> Pending:
        """Send `sent[j]` rows to member j and receive `received[i]` of member i, in the order of the members."""
        if not self._carries(rows):
            return super().all_to_all(rows, sent, received, out)
        start_s, rows = time.perf_counter(), rows.contiguous()
        result = rows.new_empty((sum(received), *rows.shape[1:])) if out is None else out
        row_bytes = rows.nbytes // max(1, rows.shape[0])
        tier_bytes = self._ledger.by_tier((other, sent[other] * row_bytes) for other in self._others)
        self._ledger.count(tier_bytes)
        work = self._process_group.alltoall_base(result, rows, list(received), list(sent))
        return self._pending("all_to_all", start_s, tier_bytes, work, (result, rows))

    def exchange_counts(self, counts: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Send row j of `counts`, int64 [size, m], to member j; return the rows that came, [size, m]; `out` if any."""
        if counts.device.type == "cpu":
            return super().exchange_counts(counts, out)
        came = super().exchange_counts(counts.cpu()).to(counts.device)
        return came if out is None else out.copy_(came)

    def broadcast(self, tensor: torch.Tensor, source_index: int) -> torch.Tensor:
        """Replace the contiguous `tensor` by that of member `source_index`, and return it."""
        if not self._carries(tensor):
            return super().broadcast(tensor, source_index)
        start_s = time.perf_counter()
        self._finish(self._process_group.broadcast(tensor, source_index))
        self._record_ring("broadcast", start_s, tensor.nbytes // self.size)
        return tensor

    def send(self, tensor: torch.Tensor, to_index: int) -> Pending:
        """Send `tensor` to another member; from CPUs over the links, as gloo's sends do not end when told to stop."""
        if not self._carries(tensor) or self._device_type == "cpu":
            return super().send(tensor, to_index)
        start_s, whole = time.perf_counter(), tensor.contiguous()
        tier_bytes = self._ledger.by_tier([(to_index, tensor.nbytes)])
        self._ledger.count(tier_bytes)
        work = self._process_group.send([whole], to_index, 0)
        return self._pending("send", start_s, tier_bytes, work, (tensor, whole))

    def receive(self, tensor: torch.Tensor, from_index: int) -> Pending:
        """Fill the contiguous `tensor` with what another member sends."""
        if not self._carries(tensor) or self._device_type == "cpu":
            return super().receive(tensor, from_index)
        start_s, tier_bytes = time.perf_counter(), self._ledger.by_tier([])
        self._ledger.count(tier_bytes)
        work = self._process_group.recv([tensor], from_index, 0)
        return self._pending("receive", start_s, tier_bytes, work, (tensor, tensor))

    def _pending(
        self,
        name: str,
        start_s: float,
        tier_bytes: tuple[int, ...],
        work: Work,
        tensors: tuple[torch.Tensor, torch.Tensor],
    ) -> PendingWork:
        tell = self._ledger.teller(name, start_s, tier_bytes)
        return PendingWork(work, tensors, lambda: self._ledger.waiting(lambda: self._finish(work)), tell)

    def _finish(self, work: Work) -> None:
        """Wait for work of the process group: on CPUs in slices, so that an order to stop and the deadline count."""
        if self._device_type != "cpu":
            work.wait()
            return
        begin_s = time.perf_counter()
        while True:
            try:
                work.wait(timedelta(seconds=SLICE_S))
            except RuntimeError as error:
                if _TIMED_OUT not in str(error):
                    waited_s = time.perf_counter() - begin_s
                    raise PeerLost(f"a member is gone: {error}", label=self._ledger.label, waited_s=waited_s) from None
                self._watch.check(self._ledger.label, None, begin_s, begin_s)
            else:
                return

    def _carries(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == self._device_type

    def _record_ring(self, name: str, start_s: float, step_bytes: int) -> None:
        # Every member of a ring sends size - 1 steps to the next one.
        sent = [((self.index + 1) % self.size, (self.size - 1) * step_bytes)]
        self._ledger.came_s = time.perf_counter()
        self._ledger.record(name, start_s, self._ledger.by_tier(sent))
