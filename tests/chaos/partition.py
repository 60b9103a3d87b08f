"""A network that is cut between one rank and all others: in a network namespace of its own, by the user it runs as.

All ranks of a server talk over one loopback interface. The one that is to be cut off runs as another user, with all
rights that it had, and a rule of the namespace drops whatever that user's sockets send, acknowledgements too, to the
other ranks and to the store. Its channel to the server is no network: it goes on.

Ranks that are far from the server are the other way round: only their channel is led over a connection of that user, as
between machines, and cut with it; their signals are not the server's. A server of `tests.chaos.far` has such ranks.

Needs root and `ip` (iproute2).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.far import USER

if TYPE_CHECKING:
    from collections.abc import Generator

_CLONE_NEWNET = 0x40000000


class Network:
    """A namespace, in which a user can be cut off."""

    def __init__(self, name: str) -> None:
        self._name = name

    def run(self, command: str) -> None:
        """Run a command of `ip` on the namespace."""
        subprocess.run(["ip", "-n", self._name, *command.split()], check=True, capture_output=True)  # noqa: S607 - iproute2, wherever it is

    def cut(self) -> None:
        """Drop what the user's sockets send."""
        self.run(f"rule add pref 5 uidrange {USER}-{USER} blackhole")

    def heal(self) -> None:
        """Let it through again."""
        self.run("rule del pref 5")


@contextmanager
def cuttable_network() -> Generator[Network]:
    """Move this thread, and what it starts, into a new namespace during the block."""
    name = f"moiety-{os.getpid()}-cut"  # `tests.two_tier` removes it where this process is killed
    subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)  # noqa: S607 - as above
    try:
        network = Network(name)
        network.run("link set lo up")
        network.run("rule add pref 10 lookup local")  # which comes first otherwise, and knows no users
        network.run("rule del pref 0")
        with _inside(Path("/run/netns") / name):
            yield network
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)  # noqa: S607 - as above


@contextmanager
def _inside(namespace: Path) -> Generator[None]:
    with Path("/proc/thread-self/ns/net").open() as ours, namespace.open() as theirs:
        _enter(theirs.fileno())
        try:
            yield
        finally:
            _enter(ours.fileno())


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
