"""`moiety` with ranks that are far from their launcher, as on another machine: no signal of it reaches them."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import threading

FAR_VARIABLE = "MOIETY_TEST_RANKS_FAR_FROM_THE_SERVER"


def lead_over_the_network(user: int) -> None:
    """Put a connection over loopback, of sockets of another user, between this rank and its channel."""
    channel = int(sys.orig_argv[-2])
    libc = ctypes.CDLL(None)
    "127.0.0.1".encode("idna")  # addresses are encoded so, and another user may not be let to read the codec
    libc.setfsuid(user)
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
    from moiety.cli.main import main
    from moiety.runtime.rank_process import RankProcess

    send = RankProcess.send
    far = {int(each) for each in os.environ[FAR_VARIABLE].split(",")}
    RankProcess.send = lambda process, number: None if process.rank in far else send(process, number)
    main()
