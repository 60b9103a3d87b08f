"""World: the processes that are ranks of one run, as the environment numbers them, and the store where they meet."""

from __future__ import annotations

import errno
import re
import socket
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage] - torch's own way to export it

DEFAULT_PORT = 29_500
"""Port of the store where nothing names one: that of `torchrun`."""
STORE_TIMEOUT_S = 300.0
"""How long a wait for a key of the store may take."""
_JOIN_S = 120.0
"""How long the host of the store may take to appear: machines of a job do not start together."""
_HANDSHAKE_S = 5.0
"""How long whoever listens there may take to answer as a store does."""
_PROBE_PERIOD_S = 0.1
_LARGEST_PORT = 65_535
_HOSTED = "TORCHELASTIC_USE_AGENT_STORE"


class NoStoreError(InputError):
    """The store of a run cannot be reached, so that its ranks cannot agree on anything, nor on who says so."""


@dataclass(frozen=True, slots=True)
class World:
    """Where this process stands among the ranks of a run, and where their store is."""

    rank: int
    size: int
    local_rank: int
    """Number among the ranks of this machine."""
    local_size: int
    """Ranks of this machine."""
    address: str
    port: int
    is_hosted: bool
    """Whether a process that is no rank hosts the store: our launcher, or the agent of `torchrun`. Else rank 0 does."""
    restart: int = 0
    """How often the ranks have been started before; the store may outlive them."""

    @property
    def hosts_store(self) -> bool:
        """Whether this rank hosts the store."""
        return self.rank == 0 and not self.is_hosted

    def environment(self) -> dict[str, str]:
        """Return the variables that say the same to a process, as `torchrun` sets them."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            "TORCHELASTIC_RESTART_COUNT": str(self.restart),
            _HOSTED: str(self.is_hosted),
        }

    def join(self, *, within_s: float = _JOIN_S) -> Store:
        """Return the store of the run, hosted here where this rank is to host it.

        Raises NoStoreError where the port is taken, nobody listens on it in time, or who does is no store.
        """
        import torch.distributed as dist  # noqa: PLC0415 - whoever only reads the environment needs no torch

        timeout = timedelta(seconds=STORE_TIMEOUT_S)
        if self.hosts_store:
            store = hosted_store(listening(self.address, self.port))
        else:
            self._await_listener(within_s)
            store = self._called(timeout)
        return dist.PrefixStore(f"moiety/{self.restart}", store)  # pyright: ignore[reportPrivateImportUsage]

    def _await_listener(self, within_s: float) -> None:
        """Return when somebody listens where the store should be; torch itself would wait with loud complaints."""
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                socket.create_connection((self.address, self.port), timeout=_HANDSHAKE_S).close()
            except OSError as error:
                if time.monotonic() > deadline_s:
                    reason = error.strerror or str(error)
                    raise self._no_store(
                        f"rank {self.rank} found nobody there for {within_s:.0f} s: {reason}"
                    ) from None
                time.sleep(_PROBE_PERIOD_S)
            else:
                return

    def _called(self, timeout: timedelta) -> Store:
        """Return the store that listens; whoever listens without answering must not hold this rank for ever."""
        from torch.distributed import TCPStore  # noqa: PLC0415  # pyright: ignore[reportPrivateImportUsage] - as above

        made: list[TCPStore | Exception] = []

        def call() -> None:
            try:
                made.append(TCPStore(self.address, self.port, None, False, timeout))  # noqa: FBT003 - torch's order
            except Exception as error:  # noqa: BLE001 - it is raised below, in the thread that waits
                made.append(error)

        caller = threading.Thread(target=call, name="call of the store", daemon=True)
        caller.start()
        caller.join(_HANDSHAKE_S)
        if not made or isinstance(made[0], Exception):
            raise self._no_store("who listens there does not answer as the store of a run")
        return made[0]

    def _no_store(self, rule: str) -> NoStoreError:
        remedy = "is rank 0 running, and is the port free for it?"
        return NoStoreError(rule, field="MASTER_ADDR:MASTER_PORT", value=f"{self.address}:{self.port}", remedy=remedy)


def world_of(environ: Mapping[str, str]) -> World | None:
    """Return the world that `torchrun` or Slurm put this process into; None where it stands alone.

    Raises InputError for numbers that cannot be.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif "SLURM_PROCID" in environ and _slurm_size(environ) not in {None, "1"}:
        size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
        names = ("SLURM_PROCID", size, "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
    else:
        return None
    rank_name, size_name, local_rank_name, local_size_name = names
    size = _number(environ, size_name, 1, 10**6)
    rank = _number(environ, rank_name, 0, size - 1)
    return World(
        rank=rank,
        size=size,
        local_rank=_number(environ, local_rank_name, 0, size - 1, default=rank),
        local_size=_number(environ, local_size_name, 1, size, default=size),
        address=environ.get("MASTER_ADDR") or _slurm_head(environ),
        port=_port(environ),
        is_hosted=environ.get(_HOSTED) == str(True),
        restart=_number(environ, "TORCHELASTIC_RESTART_COUNT", 0, 10**6, default=0),
    )


def asked_port(environ: Mapping[str, str]) -> int:
    """Return the port that MASTER_PORT asks for; 0, any free one, where it is not set."""
    return _number(environ, "MASTER_PORT", 1, _LARGEST_PORT, default=0)


def listening(address: str, port: int) -> socket.socket:
    """Return a socket that listens for the store's callers; raise NoStoreError where the port is taken.

    On a loopback address nobody else reaches it; on any other every interface listens, as a name may have several.
    """
    is_local = address == "localhost" or address.startswith("127.")
    try:
        return socket.create_server((address if is_local else "", port), backlog=1024)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        rule = "the port is in use" if taken else f"cannot be listened on: {error.strerror or error}"
        remedy = "free it, or name another; alone on one machine, leave MASTER_PORT out and a free one is taken"
        raise NoStoreError(rule, field="MASTER_PORT", value=port, remedy=remedy) from None


def hosted_store(listener: socket.socket) -> Store:
    """Return a store that answers on a socket which listens already; the store takes the socket over."""
    from torch.distributed import TCPStore  # noqa: PLC0415  # pyright: ignore[reportPrivateImportUsage] - as above

    port = int(listener.getsockname()[1])
    return TCPStore(
        "localhost",
        port,
        None,
        True,  # noqa: FBT003 - torch's order
        timedelta(seconds=STORE_TIMEOUT_S),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _number(environ: Mapping[str, str], name: str, least: int, most: int, default: int | None = None) -> int:
    text = environ.get(name)
    if default is not None and not text:
        return default
    word = (text or "").strip()
    if not re.fullmatch(r"[0-9]{1,7}", word) or not least <= int(word) <= most:
        rule = f"must be a whole number from {least} to {most}"
        raise InputError(rule, source="environment", field=name, value=text, remedy="`torchrun` and `srun` set it")
    return int(word)


def _port(environ: Mapping[str, str]) -> int:
    """Return MASTER_PORT; under Slurm one that two jobs on a machine seldom share, else that of `torchrun`."""
    job = environ.get("SLURM_JOB_ID", "")
    usual = DEFAULT_PORT + int(job) % 10_000 if job.isdecimal() else DEFAULT_PORT
    return _number(environ, "MASTER_PORT", 1, _LARGEST_PORT, default=usual)


def _slurm_size(environ: Mapping[str, str]) -> str | None:
    return environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS")


def _slurm_head(environ: Mapping[str, str]) -> str:
    """Return the first machine of `node[003-010,12],other`, Slurm's way of writing a list; without one this machine."""
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    found = re.match(r"([^,\[]+)(?:\[([0-9]+))?", nodes)
    return f"{found[1]}{found[2] or ''}" if found else "127.0.0.1"
