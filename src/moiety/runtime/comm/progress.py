"""Progress: the thread that moves bytes while their rank computes."""

from __future__ import annotations

import select
import threading
from typing import TYPE_CHECKING

from moiety.runtime.comm.waker import Waker
from moiety.runtime.comm.watch import SLICE_S

if TYPE_CHECKING:
    from moiety.runtime.comm.link import Link
    from moiety.runtime.comm.mesh import Mesh


class Progress:
    """One thread a rank, asleep until a mesh asks for help with transfers that nobody waits for yet."""

    def __init__(self, name: str) -> None:
        self._meshes: dict[Mesh, None] = {}
        self._lock = threading.Lock()
        self._waker = Waker()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def help(self, mesh: Mesh) -> None:
        """Move the bytes of `mesh` until it has none under way."""
        with self._lock:
            self._meshes[mesh] = None
        self._waker.rouse()

    def close(self) -> None:
        """End the thread."""
        self._is_closing = True
        self._waker.rouse()
        self._thread.join()
        self._waker.close()

    def _run(self) -> None:
        while not self._is_closing:
            with self._lock:
                meshes = list(self._meshes)
            poll = select.poll()
            poll.register(self._waker.descriptor, select.POLLIN)
            owners: dict[int, tuple[Mesh, Link]] = {}
            for mesh in meshes:
                for link, events in self._claim(mesh):
                    owners[link.socket.fileno()] = (mesh, link)
                    poll.register(link.socket, events)
            for descriptor, events in poll.poll(SLICE_S * 1000 if owners else None):
                if descriptor == self._waker.descriptor:
                    self._waker.clear()
                else:
                    mesh, link = owners[descriptor]
                    mesh.move_for_others(link, events)

    def _claim(self, mesh: Mesh) -> list[tuple[Link, int]]:
        with self._lock:
            self._meshes.pop(mesh, None)  # before the look at it: who asks for help from here on is heard
        with mesh.lock:
            links = [] if mesh.num_waiters or mesh.has_failed else mesh.poll_list()
        if links:
            with self._lock:
                self._meshes[mesh] = None
        return links
