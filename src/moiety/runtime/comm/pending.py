"""Pending: a transfer under way, and the tensor that it brings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from moiety.runtime.comm.ledger import Ledger
    from moiety.runtime.comm.mesh import Mesh, Transfer


class Pending(Protocol):
    """A transfer that was started."""

    def wait(self) -> torch.Tensor:
        """Return the tensor, whole; PeerLost if it cannot come."""
        ...

    def done(self) -> bool:
        """Return whether `wait` would return at once."""
        ...


class Ready:
    """A transfer that had nowhere to go."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def wait(self) -> torch.Tensor:
        """Return the tensor."""
        return self._tensor

    def done(self) -> bool:
        """Return True."""
        return True


class PendingTransfer:
    """A transfer over the links of a mesh, with the tensor that it sends or fills."""

    def __init__(self, mesh: Mesh, transfer: Transfer, tensor: torch.Tensor, ledger: Ledger) -> None:
        self._ledger = ledger
        self._mesh = mesh
        self._transfer = transfer
        self._tensor = tensor

    def wait(self) -> torch.Tensor:
        """Move bytes until all have gone and come; return the tensor that was sent or filled."""
        self._ledger.waiting(lambda: self._mesh.wait(self._transfer))
        return self._tensor

    def done(self) -> bool:
        """Move bytes that can move now; return whether all have."""
        return self._mesh.is_done(self._transfer)
