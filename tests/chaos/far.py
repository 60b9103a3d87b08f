"""`moiety` whose ranks stand elsewhere in the network, as on other machines.

One runs as another user, so that its sockets can be cut off. Others are far from their launcher: their channels are led
over connections of that user, and no signal of the launcher reaches them.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from typing import TYPE_CHECKING

from moiety.cli import serve_preparation
from moiety.cli.main import main
from moiety.runtime.rank import die_with
from moiety.runtime.rank_process import RankProcess
from moiety.runtime.serving import worker

if TYPE_CHECKING:
    from moiety.runtime.post import Post, Report

USER = 42_424
RANKS_OF_THE_USER, RANKS_FAR_AWAY = "MOIETY_TEST_RANKS_OF_ANOTHER_USER", "MOIETY_TEST_RANKS_FAR_FROM_THE_SERVER"
"""Variables that list them, with commas."""
_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP = 28, 1 << 2


def ranks_of(variable: str) -> set[int]:
    """Return the ranks that a variable lists."""
    return {int(each) for each in os.environ.get(variable, "").split(",") if each}


def serve(post: Post) -> Report:
    """Do a rank's work from where it stands; what `job.entry` names."""
    parent = os.getppid()
    if post.world.rank in ranks_of(RANKS_OF_THE_USER):
        ctypes.CDLL(None).prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)  # it keeps the rights that it had
        os.setresuid(USER, USER, USER)
    if post.world.rank in ranks_of(RANKS_FAR_AWAY):
        assert post.channel is not None, "it is our launcher's"
        _lead_over_the_network(post.channel._socket.fileno())  # noqa: SLF001 - nobody else replaces it
    die_with(parent)  # Linux forgets it when the user changes
    return worker.serve(post)


def _lead_over_the_network(channel: int) -> None:
    """Put a connection over loopback, of sockets of another user, between this rank and its channel."""
    libc = ctypes.CDLL(None)
    "127.0.0.1".encode("idna")  # addresses are encoded so, and another user may not be let to read the codec
    libc.setfsuid(USER)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    libc.setfsuid(0)
    inner = socket.socket(fileno=os.dup(channel))
    os.dup2(ours.detach(), channel)
    for source, target in ((inner, theirs), (theirs, inner)):
        threading.Thread(target=_carry, args=(source, target), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:  # one end is gone
        return


if __name__ == "__main__":
    send, far = RankProcess.send, ranks_of(RANKS_FAR_AWAY)
    RankProcess.send = lambda process, number: None if process.rank in far else send(process, number)
    serve_preparation.SERVING_ENTRY = "tests.chaos.far:serve"
    main()
