"""ForkServer: the process that a job's ranks are forked from, as their launcher has it: ready, asked, listened to."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from moiety.runtime.channel import message_of
from moiety.runtime.failure import RankFailedError
from moiety.runtime.last_words import last_words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moiety.runtime.job import Job

_READ_BYTES = 1 << 16
_PERIOD_S = 0.05
"""How often a wait looks around."""


@dataclass(frozen=True, slots=True)
class Fork:
    """A process that has been forked."""

    pid: int
    _server: ForkServer

    def code(self, within_s: float = 0.0) -> int | None:
        """Return its exit code, after at most so long; less than 0: the signal that ended it, None: it is there."""
        return self._server.code_of(self.pid, within_s)


class ForkServer:
    """Starts processes that have imported what the ranks of a job need (see `fork_server.py`); all end with it.

    It ends with the thread that has started it.
    """

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        """Start it; `environment` is that of all ranks but for their worlds."""
        self._job_file = tempfile.TemporaryFile()  # noqa: SIM115 - `close` does
        self._job_file.write(job.model_dump_json().encode())
        self._job_file.flush()
        job_fd = self._job_file.fileno()
        self._codes: dict[int, int | None] = {}
        """Exit codes by pid; None while the process is there."""
        self._started: list[int] = []
        self._refusal: str | None = None
        self._is_ready = self._is_over = False
        self._unread = b""
        module = job.entry.partition(":")[0]
        self._control, theirs = socket.socketpair()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - as above
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [
                    *(sys.executable, "-P", "-m", "moiety.runtime.fork_server"),
                    *(str(each) for each in (theirs.fileno(), job_fd, os.getpid(), module)),
                ],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=(theirs.fileno(), job_fd),
                start_new_session=True,
            )

    def await_ready(self, obey: Callable[[], None] = lambda: None) -> None:
        """Return when it has imported everything; `obey`, called meanwhile, may raise.

        Raises RankFailedError where it has ended.
        """
        while not self._is_ready:
            obey()
            self._listen(_PERIOD_S)
            self._check()

    def fork(self, environment: Mapping[str, str], channel: socket.socket, output_fd: int) -> Fork:
        """Return a new rank: with these variables, its end of the channel, and a file for what it writes.

        Raises RankFailedError where the system has no room for it, or the server has ended.
        """
        request = json.dumps(environment).encode() + b"\n"
        self._control.settimeout(None)
        with contextlib.suppress(BrokenPipeError):
            socket.send_fds(self._control, [request], [channel.fileno(), output_fd])
        while not self._started:
            self._listen(_PERIOD_S)
            self._check()
        return Fork(self._started.pop(), self)

    def code_of(self, pid: int, within_s: float) -> int | None:
        """Return the exit code of a process of this server's, as `Fork.code`."""
        deadline_s = time.monotonic() + within_s
        while True:
            self._listen(max(min(deadline_s - time.monotonic(), _PERIOD_S), 0.0))
            code = self._codes[pid]
            if code is not None or time.monotonic() >= deadline_s:
                return code

    def close(self) -> None:
        """End it; by then no rank should be left."""
        self._process.kill()
        self._process.wait()
        for each in (self._control, self._output, self._job_file):
            each.close()

    def _check(self) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise RankFailedError(f"no process can be started for a rank: {refusal}")
        if self._is_over:
            who = f"the process that ranks are forked from (pid {self._process.pid})"
            raise RankFailedError(last_words(who, self._process.wait(), self._output))

    def _listen(self, within_s: float) -> None:
        """Take in what the server says, after at most so long."""
        if self._is_over:
            return
        while True:
            self._control.settimeout(within_s)
            try:
                data = self._control.recv(_READ_BYTES)
            except (BlockingIOError, TimeoutError):
                return
            except ConnectionError:
                data = b""
            if not data:
                self._bury_all()
                return
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                self._take(message_of(line))
            within_s = 0.0

    def _take(self, message: Mapping[str, object]) -> None:
        if "started" in message:
            pid = cast("int", message["started"])
            self._codes[pid] = None
            self._started.append(pid)
        elif "ended" in message:
            pid, code = cast("tuple[int, int]", message["ended"])
            self._codes[pid] = code
        elif "failed" in message:
            self._refusal = cast("str", message["failed"])
        else:
            self._is_ready = True

    def _bury_all(self) -> None:
        """Take note that the server has ended; where the system does not kill its processes then, this does."""
        self._is_over = True
        for pid in [pid for pid, code in self._codes.items() if code is None]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            self._codes[pid] = -signal.SIGKILL
