"""Gradients: summed over all ranks that hold a copy of the same piece, whatever makes them hold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from moiety.runtime.comm.priority import Priority

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moiety.runtime.comm.group import Group
    from moiety.runtime.comm.network import Network
    from moiety.runtime.training.pieces import Key, Piece

_BUCKET_BYTES = 32 << 20
"""Of gradients that are summed in one reduction."""


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """Pieces that the same ranks hold."""

    group: Group
    pieces: tuple[Piece, ...]

    def reduce(self) -> None:
        """Replace the gradients of the pieces by their sums over the group; what that takes is given back."""
        for bucket in self._buckets():
            parts = [_gradient(piece) for piece in bucket]
            flat = self.group.all_reduce(torch.cat([part.reshape(-1) for part in parts]))
            for part, total in zip(parts, torch.split(flat, [part.numel() for part in parts]), strict=True):
                part.copy_(total.view(part.shape))
        self.group.let_go_of_room()

    def _buckets(self) -> Iterator[list[Piece]]:
        bucket: list[Piece] = []
        size = 0
        for piece in self.pieces:
            nbytes = piece.of(piece.owner).nbytes
            if bucket and size + nbytes > _BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(piece)
            size += nbytes
        if bucket:
            yield bucket


def shared_copies(pieces: Sequence[Piece], world: Group, network: Network) -> tuple[Copies, ...]:
    """Return the trained pieces that other ranks hold too, by who holds them; every rank calls it at the same time.

    Copies of experts, dense parameters of other attention groups and instances, key heads and norms that tensor
    parallelism does not divide are all the same case. All ranks have the sets in the same order.
    """
    trained = [piece for piece in pieces if piece.owner.requires_grad and piece.of(piece.owner).numel()]
    everyone = cast("list[list[Key]]", world.gather_objects([piece.key for piece in trained]))
    holders: dict[Key, list[int]] = {}
    for rank, keys in zip(world.ranks, everyone, strict=True):
        for key in keys:
            holders.setdefault(key, []).append(rank)
    by_key = {piece.key: piece for piece in trained}
    found: list[Copies] = []
    for ranks in sorted({tuple(each) for each in holders.values() if len(each) > 1}):
        if world.ranks[world.index] in ranks:
            mine = tuple(by_key[key] for key in sorted(by_key) if tuple(holders[key]) == ranks)
            found.append(Copies(network.group(ranks, "gradients", Priority.REDUCTION), mine))
    return tuple(found)


def _gradient(piece: Piece) -> torch.Tensor:
    gradient = piece.owner.grad
    assert gradient is not None, "every parameter has a gradient before they are summed"
    return piece.of(gradient)
