"""Ring: large sums among members of several nodes, so that each node's link carries the tensor twice and no more.

Partial sums go round from the first member to the last, which adds the last part, and the sums go round from there. So
every sum is added in the order of the members, as everywhere, and pieces follow each other without a gap.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from moiety.runtime.comm.reduction import MOST_KEPT_BYTES, bytes_of, widened

if TYPE_CHECKING:
    from moiety.runtime.comm.mesh import Mesh, Transfer

PIECE_BYTES = 262_144
"""Of the tensor, that a member hands on at a time."""


def goes_round(ranks: tuple[int, ...], gpus_per_node: int) -> bool:
    """Return whether a ring is the better way for large sums: several nodes, in turn, and one with several members.

    Where every node has one member, shares that go straight to everybody are as few bytes in fewer steps; inside one
    node all links are alike.
    """
    nodes = [rank // gpus_per_node for rank in ranks]
    turns = 1 + sum(first != second for first, second in pairwise(nodes))
    return 1 < turns < len(ranks) and turns == len(set(nodes))


class Ring:
    """One member's part in the sums of a group; every member makes it alike."""

    def __init__(self, mesh: Mesh, index: int, size: int) -> None:
        self._mesh, self._index = mesh, index
        self._previous, self._next = (index - 1) % size, (index + 1) % size
        self._last = size - 1
        self._lag = size
        """Pieces that a member hands on of the partial sums before the first of the sums can reach it."""
        self._room: torch.Tensor | None = None
        """Partial sums of the last tensor, unless they are big, and ..."""
        self._summed: torch.dtype | None = None
        """... its format."""
        self._wide = torch.empty(0)
        """A piece in the format of the sums, where that is another."""

    def let_go(self) -> None:
        """Keep no room for the next sum."""
        self._room, self._wide = None, torch.empty(0)

    def sent_bytes(self, flat: torch.Tensor) -> int:
        """Return the bytes that this member sends to the next one for a tensor [n]."""
        partial_bytes = flat.numel() * widened(flat[:0]).element_size()
        return partial_bytes * (self._index != self._last) + flat.nbytes * self._hands_on_sums

    @property
    def _hands_on_sums(self) -> bool:
        return self._next != self._last

    def all_reduce(self, flat: torch.Tensor) -> None:
        """Replace the contiguous `flat` [n] by its sum over the members; see `Group` for the order and the formats."""
        items = PIECE_BYTES // flat.element_size()
        starts = range(0, flat.numel(), items)
        room = self._room_for(flat)
        pieces, totals = ([whole[low : low + items] for low in starts] for whole in (flat, room))
        sending: list[Transfer] = []
        for step in range(len(pieces) + self._lag):
            if step < len(pieces):
                sending += self._add(pieces[step], totals[step])
            if step >= self._lag and self._index != self._last:
                piece = pieces[step - self._lag]
                self._receive(piece)
                sending += self._send(piece) if self._hands_on_sums else []
        for transfer in sending:
            self._mesh.wait(transfer)

    def _room_for(self, flat: torch.Tensor) -> torch.Tensor:
        """Return room for the partial sums of a tensor, the same as for the sum before if that was of such a one."""
        room = self._room
        if room is None or (self._summed, room.numel()) != (flat.dtype, flat.numel()):
            room = torch.empty_like(flat, dtype=widened(flat[:0]).dtype)
            self._room, self._summed = (room if room.nbytes <= MOST_KEPT_BYTES else None), flat.dtype
            if room.dtype != flat.dtype:
                self._wide = room.new_empty(min(room.numel(), PIECE_BYTES // flat.element_size()))
        return room

    def _add(self, piece: torch.Tensor, total: torch.Tensor) -> list[Transfer]:
        """Add one's own piece to what the members before have added up, in `total`, and hand it on."""
        is_wider = piece.dtype != total.dtype
        if self._index:
            self._receive(total)
            total.add_(self._wide[: piece.shape[0]].copy_(piece) if is_wider else piece)
        elif is_wider:
            total.copy_(piece)
        else:
            total = piece
        if self._index != self._last:
            return self._send(total)
        piece.copy_(total)
        return self._send(piece)

    def _send(self, tensor: torch.Tensor) -> list[Transfer]:
        return [self._mesh.start([(self._next, bytes_of(tensor))], [], keep=tensor)]

    def _receive(self, tensor: torch.Tensor) -> None:
        self._mesh.wait(self._mesh.start([], [(self._previous, bytes_of(tensor))]))
