"""Group: ranks that act together: reductions, exchanges and transfers among them."""

from __future__ import annotations

import pickle
import time
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import torch

from moiety.runtime.comm.pending import Pending, PendingTransfer, Ready
from moiety.runtime.comm.reduction import Rooms, bytes_of
from moiety.runtime.comm.ring import Ring, goes_round

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.runtime.comm.ledger import Ledger
    from moiety.runtime.comm.mesh import Mesh, Part
    from moiety.runtime.comm.priority import Priority

DIRECT_REDUCTION_BYTES = 65_536
"""Up to this size every member sends its whole tensor to every other one: one step in place of two."""
PIECE_BYTES = 4 << 20
"""What a larger reduction takes at a time, so that the room for it stays small and near."""


class Group:
    """Ranks in the order of `ranks`; `index` is this one's place. Tensors are on the CPU.

    Every member calls the same operations in the same order. Sums are taken in the order of the members, in FP32 for
    BF16 and FP16, and rounded once, so that every member has the same bits whatever the size or the network. A group
    of one rank has no connections and does everything by itself.
    """

    def __init__(
        self, ranks: tuple[int, ...], index: int, mesh: Mesh, ledger: Ledger, *, gpus_per_node: int | None = None
    ) -> None:
        """`gpus_per_node`: consecutive ranks that share the innermost links; None where nodes do not matter."""
        self.ranks = ranks
        self.index = index
        self.size = len(ranks)
        self._mesh = mesh
        self._ledger = ledger
        self._others = tuple((index + step) % self.size for step in range(1, self.size))
        self._rooms = Rooms(self._others)
        is_ring = gpus_per_node is not None and goes_round(ranks, gpus_per_node)
        self._ring = Ring(mesh, index, self.size) if is_ring else None

    @property
    def label(self) -> str:
        """What the group is for."""
        return self._ledger.label

    @property
    def priority(self) -> Priority:
        """Class of the group's transfers."""
        return self._ledger.priority

    def let_go_of_room(self) -> None:
        """Give back the memory that is kept for the next sums."""
        self._rooms.let_go()
        if self._ring is not None:
            self._ring.let_go()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace `tensor` by its sum over the members, and return it."""
        if self.size == 1:
            return tensor
        if not tensor.is_contiguous():
            return tensor.copy_(self.all_reduce(tensor.contiguous()))
        start_s = time.perf_counter()
        flat = tensor.detach().view(-1)
        if tensor.nbytes <= DIRECT_REDUCTION_BYTES:
            tier_bytes = self._reduce_directly(flat)
        elif self._ring is not None:
            self._ring.all_reduce(flat)
            tier_bytes = self._ledger.by_tier([((self.index + 1) % self.size, self._ring.sent_bytes(flat))])
        else:
            tier_bytes = self._reduce_in_shares(flat)
        self._ledger.record("all_reduce", start_s, tier_bytes)
        return tensor

    def _reduce_directly(self, flat: torch.Tensor) -> tuple[int, ...]:
        room = self._rooms.room_for(flat)
        data = bytes_of(flat)
        self._exchange([(other, data) for other in self._others], room.parts)
        room.add_up(flat)
        return self._ledger.to_every_other(data.nbytes)

    def _reduce_in_shares(self, flat: torch.Tensor) -> tuple[int, ...]:
        sent: list[tuple[int, int]] = []
        piece_items = PIECE_BYTES // flat.element_size()
        for begin in range(0, flat.numel(), piece_items):
            piece = flat[begin : begin + piece_items]
            bounds = [piece.numel() * place // self.size for place in range(self.size + 1)]
            own = piece[bounds[self.index] : bounds[self.index + 1]]
            data = [bytes_of(piece[low:high]) for low, high in pairwise(bounds)]
            room = self._rooms.room_for(own)
            self._exchange([(other, data[other]) for other in self._others], room.parts)
            room.add_up(own)
            self._exchange(
                [(other, data[self.index]) for other in self._others], [(other, data[other]) for other in self._others]
            )
            sent += [(other, data[other].nbytes + own.nbytes) for other in self._others]
        return self._ledger.by_tier(sent)

    def all_gather(self, tensor: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tensors of all members, which have equal shapes: [size, *shape]; in `out` where there is one."""
        gathered = tensor.new_empty((self.size, *tensor.shape)) if out is None else out
        gathered[self.index] = tensor
        if self.size > 1:
            start_s = time.perf_counter()
            parts = self._rows_of(gathered)
            own = parts[self.index]
            self._exchange([(other, own) for other in self._others], [(other, parts[other]) for other in self._others])
            self._ledger.record("all_gather", start_s, self._ledger.to_every_other(own.nbytes))
        return gathered

    def reduce_scatter(self, tensor: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return this member's n rows of the sum of [size * n, ...] over the members: [n, ...]; in `out`, if any."""
        assert tensor.shape[0] % self.size == 0, f"{tensor.shape[0]} rows do not divide among {self.size} members"
        num_rows = tensor.shape[0] // self.size
        shares = tensor.detach().contiguous()
        share = shares.narrow(0, self.index * num_rows, num_rows)
        own = share.clone() if out is None else out.copy_(share)
        if self.size > 1:
            start_s = time.perf_counter()
            flat = own.view(-1)
            parts = self._rows_of(shares)
            room = self._rooms.room_for(flat)
            self._exchange([(other, parts[other]) for other in self._others], room.parts)
            room.add_up(flat)
            self._ledger.record("reduce_scatter", start_s, self._ledger.to_every_other(own.nbytes))
        return own

    def all_to_all(
        self, rows: torch.Tensor, sent: Sequence[int], received: Sequence[int], out: torch.Tensor | None = None
    ) -> Pending:
        """Send `sent[j]` rows to member j, which stand in the order of the members: [sum(sent), ...].

        The tensor that comes is [sum(received), ...], `received[i]` rows of member i, in the order of the members; it
        is the contiguous `out`, if any. `rows` must stay as it is until it has come.
        """
        assert len(sent) == len(received) == self.size, f"{len(sent)} and {len(received)} counts, {self.size} members"
        assert sum(sent) == rows.shape[0], f"{sum(sent)} rows announced, {rows.shape[0]} given"
        assert sent[self.index] == received[self.index], "a member gets of itself what it keeps"
        start_s = time.perf_counter()
        rows = rows.detach().contiguous()
        result = rows.new_empty((sum(received), *rows.shape[1:])) if out is None else out
        row_bytes = rows.element_size() * prod(rows.shape[1:])
        data, room = _cut(bytes_of(rows), sent, row_bytes), _cut(bytes_of(result), received, row_bytes)
        room[self.index][:] = data[self.index]
        if self.size == 1:
            return Ready(result)
        outgoing = [(other, data[other]) for other in self._others if sent[other]]
        incoming = [(other, room[other]) for other in self._others if received[other]]
        return self._start("all_to_all", start_s, outgoing, incoming, (result, rows))

    def exchange_counts(self, counts: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Send row j of `counts`, int64 [size, m], to member j; return the rows that came, [size, m]; `out` if any."""
        assert counts.shape[0] == self.size, f"{counts.shape[0]} rows of counts for {self.size} members"
        counts = counts.contiguous()
        result = counts.clone() if out is None else out.copy_(counts)
        if self.size > 1:
            start_s = time.perf_counter()
            data, room = self._rows_of(counts), self._rows_of(result)
            self._exchange(
                [(other, data[other]) for other in self._others], [(other, room[other]) for other in self._others]
            )
            self._ledger.record("exchange_counts", start_s, self._ledger.to_every_other(data[0].nbytes))
        return result

    def broadcast(self, tensor: torch.Tensor, source_index: int) -> torch.Tensor:
        """Replace `tensor` by that of member `source_index`, and return it."""
        if self.size == 1:
            return tensor
        start_s = time.perf_counter()
        whole = tensor.detach().contiguous()
        data = bytes_of(whole)
        if self.index == source_index:
            self._exchange([(other, data) for other in self._others], [])
            self._ledger.record("broadcast", start_s, self._ledger.to_every_other(data.nbytes))
        else:
            self._exchange([], [(source_index, data)])
            self._ledger.record("broadcast", start_s, self._ledger.to_every_other(0))
            if not tensor.is_contiguous():
                tensor.copy_(whole)
        return tensor

    def send(self, tensor: torch.Tensor, to_index: int) -> Pending:
        """Send `tensor` to another member, which receives one of the same shape and dtype."""
        start_s = time.perf_counter()
        whole = tensor.detach().contiguous()
        return self._start("send", start_s, [(to_index, bytes_of(whole))], [], (tensor, whole))

    def receive(self, tensor: torch.Tensor, from_index: int) -> Pending:
        """Fill the contiguous `tensor` with what another member sends."""
        assert tensor.is_contiguous(), "a tensor to receive into lies in one piece"
        return self._start("receive", time.perf_counter(), [], [(from_index, bytes_of(tensor))], (tensor, tensor))

    def gather_objects(self, value: object) -> list[object]:
        """Return the values of all members, in their order, on every member."""
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = [int(size) for size in self.exchange_counts(torch.full((self.size, 1), data.numel()))]
        gathered = self.all_to_all(data.repeat(self.size), [data.numel()] * self.size, sizes).wait()
        return [pickle.loads(piece) for piece in _cut(bytes_of(gathered), sizes, 1)]  # noqa: S301  # from our own ranks

    def barrier(self) -> None:
        """Return when every member has called it."""
        start_s = time.perf_counter()
        nothing = memoryview(bytearray())
        self._exchange([(other, nothing) for other in self._others], [(other, nothing) for other in self._others])
        self._ledger.record("barrier", start_s, self._ledger.to_every_other(0))

    def _exchange(self, outgoing: list[Part], incoming: list[Part]) -> None:
        mesh = self._mesh
        self._ledger.came_s = mesh.wait(mesh.start(outgoing, incoming))

    def _start(
        self,
        name: str,
        start_s: float,
        outgoing: list[Part],
        incoming: list[Part],
        tensors: tuple[torch.Tensor, torch.Tensor],
    ) -> Pending:
        tier_bytes = self._ledger.by_tier((place, part.nbytes) for place, part in outgoing)
        self._ledger.count(tier_bytes)
        on_end = self._ledger.teller(name, start_s, tier_bytes)
        transfer = self._mesh.start(outgoing, incoming, on_end=on_end, keep=tensors, is_background=True)
        return PendingTransfer(self._mesh, transfer, tensors[0], self._ledger)

    def _rows_of(self, tensor: torch.Tensor) -> list[memoryview]:
        data = bytes_of(tensor)
        row_bytes = data.nbytes // self.size
        return [data[place * row_bytes : (place + 1) * row_bytes] for place in range(self.size)]


def _cut(data: memoryview, counts: Sequence[int], row_bytes: int) -> list[memoryview]:
    parts: list[memoryview] = []
    begin = 0
    for count in counts:
        parts.append(data[begin : begin + count * row_bytes])
        begin += count * row_bytes
    return parts
