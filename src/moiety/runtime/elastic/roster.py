"""Roster: the processes of a crew: started, heard, given up, ended."""

from __future__ import annotations

import selectors
import signal
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, cast

from moiety.runtime.elastic.hand import Hand
from moiety.runtime.elastic.limits import WORD_S
from moiety.runtime.elastic.replan import held_by
from moiety.runtime.fork_server_process import ForkServer
from moiety.runtime.launch import LOOPBACK, end_all, rank_environment
from moiety.runtime.rank_process import start
from moiety.runtime.world import World, asked_port, hosted_store, listening

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage] - torch's own way to export it

    from moiety.runtime.elastic.limits import Limits
    from moiety.runtime.job import Job

PERIOD_S = 0.02
"""How often the crew looks."""
_GONE_S = 5.0
"""How long ranks may take to leave when the crew is closed."""


class Roster:
    """All processes that a crew has ever started, by their numbers, and the store where they meet."""

    def __init__(self, job: Job, limits: Limits, output_folder: Path | None, environ: Mapping[str, str]) -> None:
        self._job, self._limits, self._output, self._environ = job, limits, output_folder, environ
        self._said_s = 0.0
        """When the processes were told last that the launcher is there."""
        self._stack = ExitStack()
        self._selector = selectors.DefaultSelector()
        self.hands: list[Hand] = []

    def open(self, obey: Callable[[], None]) -> None:
        """Start a process for every home; end all where that fails, or `obey`, called meanwhile, raises."""
        listener = self._stack.enter_context(listening(LOOPBACK, asked_port(self._environ)))
        self._port = int(listener.getsockname()[1])
        environment = rank_environment(self._environ, self._job.num_ranks)
        self._forks = self._stack.enter_context(closing(ForkServer(self._job, environment)))
        try:
            self._store: Store | None = hosted_store(listener)
            self._forks.await_ready(obey)
            for home in range(self._job.num_ranks):
                obey()
                self.start(home, is_in=True)
        except BaseException:
            self.close()
            raise

    def start(self, home: int, *, is_in: bool) -> Hand:
        """Start the process of a home."""
        size = self._job.num_ranks
        world = World(home, size, home, size, LOOPBACK, self._port, is_hosted=True)
        process = start(world, self._forks, self._output)
        hand = Hand(len(self.hands), home, process, time.monotonic(), held_by(self._job.plan, home), is_in)
        self.hands.append(hand)
        self._selector.register(process.channel, selectors.EVENT_READ, hand)
        limits = {"connect_s": self._limits.connect_s, "orphan_s": self._limits.orphan_s}
        process.tell({"welcome": {"member": hand.number, **limits}})
        return hand

    def here(self) -> list[Hand]:
        """Return the processes that are not given up."""
        return [each for each in self.hands if not each.is_gone]

    def at(self, home: int) -> Hand:
        """Return the process of a home that has one."""
        return next(each for each in self.here() if each.home == home)

    def vacant(self) -> int | None:
        """Return the first home without a process; None where all have one."""
        taken = {each.home for each in self.here()}
        return next((each for each in range(self._job.num_ranks) if each not in taken), None)

    def wait(self, timeout_s: float) -> list[Hand]:
        """Return the processes that have something to say, after at most so long."""
        return [cast("Hand", key.data) for key, _ in self._selector.select(timeout_s)]

    def push(self) -> None:
        """Send what waits to be sent, and now and then a word to those that nothing waits for."""
        now_s = time.monotonic()
        if now_s - self._said_s >= WORD_S:
            self._said_s = now_s
            for each in self.here():
                if not each.process.is_untold:
                    each.process.tell({"here": {}})
        for each in self.here():
            each.process.push()

    def give_up(self, hand: Hand) -> None:
        """Fence a process: it is killed, and what it may still say is not read any more."""
        hand.is_gone = True
        hand.process.send(signal.SIGKILL)
        self._selector.unregister(hand.process.channel)
        hand.process.close()  # who still lives there, on whatever machine, finds that it is alone, and leaves

    def close(self) -> None:
        """End all processes: those that can take leave do."""
        here = [each.process for each in self.here()]
        for each in here:
            each.tell({"end": "closed"})
        deadline_s = time.monotonic() + _GONE_S
        while any(each.is_running for each in here) and time.monotonic() < deadline_s:
            for each in here:
                each.push()
            time.sleep(PERIOD_S)
        end_all([each.process for each in self.hands])
        self.hands.clear()
        self._selector.close()
        self._store = None
        self._stack.close()
