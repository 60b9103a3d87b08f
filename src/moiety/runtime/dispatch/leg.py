"""Leg: the way of rows over a group and back again, in given memory, when their numbers change from step to step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moiety.runtime.conversion import from_array

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from moiety.runtime.comm.group import Group, Pending


class Leg:
    """One transfer of each step of a layer, and the one that goes the other way."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._sent: list[int] = []
        self._received: list[int] = []
        self._pending: Pending | None = None

    @property
    def num_sent(self) -> int:
        """Rows that this rank sends."""
        return sum(self._sent)

    @property
    def num_received(self) -> int:
        """Rows that come to it."""
        return sum(self._received)

    def agree(self, sent: NDArray[np.int64], received: NDArray[np.int64]) -> None:
        """Take the numbers of rows to and from each member in this step."""
        self._sent, self._received = sent.tolist(), received.tolist()

    def go(self, rows: torch.Tensor, room: torch.Tensor) -> None:
        """Begin to send what stands first in `rows`, and to receive into the first of `room`."""
        assert room.shape[0] >= self.num_received, f"{self.num_received} rows come where {room.shape[0]} can"
        going, coming = rows[: self.num_sent], room[: self.num_received]
        self._pending = self._group.all_to_all(going, self._sent, self._received, coming)

    def come_back(self, rows: torch.Tensor, room: torch.Tensor) -> None:
        """Begin to return what stands first in `rows` to those that it came from, and to receive into `room`."""
        going, coming = rows[: self.num_received], room[: self.num_sent]
        self._pending = self._group.all_to_all(going, self._received, self._sent, coming)

    def wait(self, *_under_way: torch.Tensor) -> None:
        """Wait until all rows that are under way in these tensors have gone and come."""
        assert self._pending is not None, "what is waited for has begun"
        self._pending.wait()
        self._pending = None


def agreed(counts: Group, sent: NDArray[Any]) -> NDArray[np.int64]:
    """Return the rows of `sent` [members, ...] that the members have sent to this one."""
    whole = np.ascontiguousarray(sent, dtype=np.int64)
    received = np.empty_like(whole)
    counts.exchange_counts(from_array(whole), from_array(received))
    return received
