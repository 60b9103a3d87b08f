"""Rendezvous: how the ranks of a network find each other's sockets through the store."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from moiety.errors import InputError
from moiety.runtime.comm.link import Link
from moiety.runtime.comm.peer_lost import PeerLost
from moiety.runtime.comm.watch import SLICE_S

if TYPE_CHECKING:
    from moiety.runtime.comm.watch import Watch

_HELLO = struct.Struct("<16s16sI")
"""The listener's token, the digest of the group, the caller's rank."""
_HELLO_TIMEOUT_S = 2.0
_STORE_PERIOD_S = 0.005
_AFAR = "192.0.2.1"
"""An address for documentation (RFC 5737): the way to it is the way out."""


def address_towards(store: Store) -> str:
    """Return this machine's address on the way to the store's host; loopback for a store without one.

    A name other than localhost that leads to loopback is the machine's own, which peers know by another address: then
    it is the one on the way out.
    """
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    host = store.host if isinstance(store, TCPStore) else "127.0.0.1"
    address = _own_address_towards(host)
    if ipaddress.ip_address(address).is_loopback and not _is_loopback(host):
        with suppress(OSError):  # no way out: all ranks are here
            return _own_address_towards(_AFAR)
    return address


def _own_address_towards(host: str) -> str:
    family, _, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # a datagram socket: nothing is sent, the kernel only chooses the route
        return str(probe.getsockname()[0])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(address: str) -> socket.socket:
    try:
        family = {4: socket.AF_INET, 6: socket.AF_INET6}[ipaddress.ip_address(address).version]
        return socket.create_server((address, 0), family=family, backlog=4096)
    except (OSError, ValueError) as error:
        raise InputError(
            f"a rank must be able to listen on its address ({getattr(error, 'strerror', None) or error})",
            field="address",
            value=address,
            remedy="name one of this machine's own",
        ) from error


class Rendezvous:
    """The listening socket of a rank, published in the store, and the connections made through it."""

    def __init__(self, rank: int, store: Store, address: str, watch: Watch, connect_s: float) -> None:
        self._rank = rank
        self._store = store
        self._watch = watch
        self._connect_s = connect_s
        self._token = secrets.token_bytes(16)
        self._listener = _listen(address)
        self._listener.settimeout(SLICE_S)
        self._early: dict[tuple[bytes, int], socket.socket] = {}
        """Connections of peers that made a group before this rank did."""
        store.set(str(rank), f"{self._token.hex()} {self._listener.getsockname()[1]} {address}")

    def connect(self, ranks: tuple[int, ...], label: str, key: str, *, is_timed: bool) -> dict[int, Link]:
        """Return links to the other members, by place; the one of higher rank calls, the other is called."""
        begin_s = time.perf_counter()
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        links: dict[int, Link] = {}
        for index, peer in enumerate(ranks):
            if peer < self._rank:
                connection = self._call(peer, digest, label, begin_s)
                links[index] = Link(connection, peer, is_timed=is_timed)
        for index, peer in enumerate(ranks):
            if peer > self._rank:
                connection = self._answer(peer, digest, label, begin_s)
                links[index] = Link(connection, peer, is_timed=is_timed)
        for link in links.values():
            link.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return links

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()
        for connection in self._early.values():
            connection.close()

    def _call(self, peer: int, digest: bytes, label: str, begin_s: float) -> socket.socket:
        while not self._store.check([str(peer)]):
            self._watch.check(label, peer, begin_s, begin_s)
            time.sleep(_STORE_PERIOD_S)  # the store's own wait complains on stderr when its time is up
        token, port, address = self._store.get(str(peer)).decode().split()
        try:
            connection = socket.create_connection((address, int(port)), timeout=self._connect_s)
            connection.sendall(_HELLO.pack(bytes.fromhex(token), digest, self._rank))
        except OSError as error:
            raise PeerLost(
                f"at {address} port {port} cannot be reached: {error.strerror or error}",
                label=label,
                rank=peer,
                waited_s=time.perf_counter() - begin_s,
            ) from error
        return connection

    def _answer(self, peer: int, digest: bytes, label: str, begin_s: float) -> socket.socket:
        while (digest, peer) not in self._early:
            self._watch.check(label, peer, begin_s, begin_s)
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(_HELLO_TIMEOUT_S)
            try:
                token, named, caller = _HELLO.unpack(connection.recv(_HELLO.size, socket.MSG_WAITALL))
            except (OSError, struct.error):  # a stranger that says nothing, or too little
                connection.close()
                continue
            if secrets.compare_digest(token, self._token):
                self._early[named, caller] = connection
            else:
                connection.close()
        return self._early.pop((digest, peer))
