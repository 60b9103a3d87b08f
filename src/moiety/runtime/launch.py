"""Launch: all ranks of a job on this machine, from their start to the end of the last one, whatever ends them."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import time
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, NoReturn

from moiety.machine.readings import num_cores
from moiety.runtime.failure import Cause, Failure, RankFailedError, first_cause
from moiety.runtime.fork_server_process import ForkServer
from moiety.runtime.interrupts import Interrupts
from moiety.runtime.rank_process import start
from moiety.runtime.world import World, asked_port, hosted_store, listening

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from pathlib import Path
    from socket import socket

    from moiety.runtime.job import Job
    from moiety.runtime.post import Report
    from moiety.runtime.rank_process import RankProcess

LOOPBACK = "127.0.0.1"
_PERIOD_S = 0.05
"""How often it is looked whether a process is gone."""
_SETTLE_S = 0.25
"""How long others with the same trouble have to report it, so that the lowest rank speaks."""
_SETTLE_CONSEQUENCE_S = 1.5
"""How long a cause has to show itself where a rank only lost a peer."""
_GRACE_S = 2.0
"""From SIGTERM to SIGKILL."""
_GONE_S = 5.0
"""How long the kernel has to remove what was killed."""
_LEAVE_S = 10.0
"""How long a rank that has reported may take to leave."""
_KEEPING_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_ARENA_MAX": "1",
}
"""Has glibc keep what tensors leave behind for the next ones. By default it gives large blocks back to the system, and
their pages fault in again at every op: a fifth of a step on a CPU."""


def launch(
    job: Job,
    *,
    output_folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Report, ...]:
    """Run every rank of a job in a process of its own on this machine; return their reports, by rank.

    When it returns or raises, all of them are gone. Raises RankFailedError with the cause where one fails, NoStoreError
    where MASTER_PORT names a port that is taken.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(listening(LOOPBACK, asked_port(environ)))
        port = int(listener.getsockname()[1])
        interrupts, ranks = Interrupts(), list["RankProcess"]()
        stack.enter_context(interrupts.noted())
        forks = stack.enter_context(closing(ForkServer(job, rank_environment(environ, job.num_ranks))))
        stack.callback(end_all, ranks)
        stack.enter_context(_store_on(listener))  # torch is loaded while the server of the forks does the same
        forks.await_ready(interrupts.obey)
        for rank in range(job.num_ranks):
            interrupts.obey()
            world = World(rank, job.num_ranks, rank, job.num_ranks, LOOPBACK, port, is_hosted=True)
            ranks.append(start(world, forks, output_folder))
        return _watched(ranks, interrupts, progress)


@contextmanager
def _store_on(listener: socket) -> Generator[None]:
    """Answer the ranks' calls for the store during the block; nothing of it may live on in a traceback."""
    store = hosted_store(listener)
    try:
        yield
    finally:
        del store


def rank_environment(environ: Mapping[str, str], num_ranks: int) -> dict[str, str]:
    """Return what all ranks find in their environment: modules as the launcher finds them, and their share of cores."""
    environment = dict(environ)
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109 - as sys.path
    environment.setdefault("OMP_NUM_THREADS", str(max(num_cores() // num_ranks, 1)))
    for name, value in _KEEPING_MEMORY.items():
        environment.setdefault(name, value)
    return environment


def _watched(
    ranks: Sequence[RankProcess], interrupts: Interrupts, progress: Callable[[int, int], None] | None
) -> tuple[Report, ...]:
    """Return the reports when all ranks have left; raise RankFailedError with the cause of the first failure."""
    with selectors.DefaultSelector() as selector:
        for each in ranks:
            selector.register(each.channel, selectors.EVENT_READ, each)
        while any(each.report is None for each in ranks):
            interrupts.obey()
            failures = _noticed(selector, ranks)
            if failures:
                _raise_cause(selector, ranks, failures)
            if progress is not None and ranks[0].progress is not None:
                progress(*ranks[0].progress)
    deadline_s = time.monotonic() + _LEAVE_S
    while any(each.is_running for each in ranks) and time.monotonic() < deadline_s:
        interrupts.obey()
        time.sleep(_PERIOD_S)
    return tuple(each.report for each in ranks if each.report is not None)


def _noticed(selector: selectors.BaseSelector, ranks: Sequence[RankProcess]) -> list[Failure]:
    """Wait a moment for reports and ends of processes; return all failures so far."""
    for key, _ in selector.select(_PERIOD_S):
        rank: RankProcess = key.data
        if not rank.read():
            selector.unregister(key.fileobj)
    if not selector.get_map():
        time.sleep(_PERIOD_S)
    for each in ranks:
        each.notice_end()
    return [each.failure for each in ranks if each.failure is not None]


def _raise_cause(selector: selectors.BaseSelector, ranks: Sequence[RankProcess], failures: list[Failure]) -> NoReturn:
    """Raise the cause of what failed, after others have had time to show it."""
    since_s = time.monotonic()
    while len(failures) < len(ranks):
        consequence = first_cause(failures).cause is Cause.CONSEQUENCE
        if time.monotonic() > since_s + (_SETTLE_CONSEQUENCE_S if consequence else _SETTLE_S):
            break
        failures = _noticed(selector, ranks)
    raise RankFailedError(first_cause(failures).message)


def end_all(ranks: Sequence[RankProcess]) -> None:
    """End the processes: politely, then by force."""
    for number, patience_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GONE_S)):
        alive = [each for each in ranks if each.is_running]
        for each in alive:
            each.send(number)
        deadline_s = time.monotonic() + patience_s
        for each in alive:
            each.wait(deadline_s - time.monotonic())
    for each in ranks:
        each.close()
