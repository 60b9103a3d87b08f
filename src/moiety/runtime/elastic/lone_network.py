"""LoneNetwork: the network of a rank that is not among the others yet: groups without connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.runtime.comm.group import Group
from moiety.runtime.comm.mesh import Mesh
from moiety.runtime.comm.network import Network

if TYPE_CHECKING:
    from moiety.runtime.comm.priority import Priority


class LoneNetwork(Network):
    """A model can be built over it, so that its weights are read; it cannot step."""

    def group(self, ranks: tuple[int, ...], label: str, priority: Priority) -> Group:
        """Return a group that knows its members and reaches none."""
        mesh = Mesh(label, {}, self.watch, lambda _mesh: None)
        return Group(ranks, ranks.index(self.rank), mesh, self.ledger(ranks, label, priority))
