"""Ring: large sums among members of several nodes, so that each node's link carries the tensor twice and no more.

Partial sums go round from the first member to the last, which adds the last part, and the sums go round from there. So
every sum is added in the order of the members, as everywhere, and pieces follow each other without a gap.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from moiety.runtime.comm.reduction import bytes_of, widened

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
        pieces = [flat[low : low + items] for low in range(0, flat.numel(), items)]
        sending: list[Transfer] = []
        for step in range(len(pieces) + self._lag):
            if step < len(pieces):
                sending += self._add(pieces[step])
            if step >= self._lag and self._index != self._last:
                piece = pieces[step - self._lag]
                self._receive(piece)
                sending += self._send(piece) if self._hands_on_sums else []
        for transfer in sending:
            self._mesh.wait(transfer)

    def _add(self, piece: torch.Tensor) -> list[Transfer]:
        """Add one's own piece to what the members before have added up, and hand it on."""
        total = widened(piece)
        if self._index:
            partial = torch.empty_like(total)
            self._receive(partial)
            total = partial.add_(total)
        if self._index != self._last:
            return self._send(total)
        piece.copy_(total)
        return self._send(piece)

    def _send(self, tensor: torch.Tensor) -> list[Transfer]:
        return [self._mesh.start([(self._next, bytes_of(tensor))], [], keep=tensor)]

    def _receive(self, tensor: torch.Tensor) -> None:
        self._mesh.wait(self._mesh.start([], [(self._previous, bytes_of(tensor))]))
