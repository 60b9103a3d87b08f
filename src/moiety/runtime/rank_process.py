"""RankProcess: one rank that our launcher has started: its reports, its own output, its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, cast

from moiety.errors import InputError
from moiety.runtime.failure import Cause, Failure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from moiety.runtime.post import Report
    from moiety.runtime.world import World

_READ_BYTES = 1 << 16
_TAIL_BYTES = 4096
_TAIL_LINES = 5
_TOLD_TO_END = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that say all there is to say: what the rank wrote before has nothing to do with them."""


@dataclass(slots=True)
class RankProcess:
    """A rank in a process and session of its own, so that a keyboard's interrupt reaches the launcher alone."""

    rank: int
    process: subprocess.Popen[bytes]
    reports_fd: int
    output: BinaryIO
    """What the rank writes on its standard output and error: libraries' warnings, a traceback."""
    progress: tuple[int, int] | None = None
    report: Report | None = None
    failure: Failure | None = None
    messages: deque[Mapping[str, object]] = field(default_factory=deque["Mapping[str, object]"])
    """What it has said beside these, not yet taken by whoever gives it orders."""
    num_reads: int = 0
    """How often something has come from it."""
    _unread: bytes = b""

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.process.poll() is None

    def read(self) -> bool:
        """Take in what the rank has reported since; return whether it may report more."""
        is_open = True
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.reports_fd, _READ_BYTES):
                self._unread += data
                self.num_reads += 1
            is_open = False
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            self._take(cast("dict[str, object]", json.loads(line)))
        return is_open

    def _take(self, message: Mapping[str, object]) -> None:
        if "progress" in message:
            done, total = cast("tuple[int, int]", message["progress"])
            self.progress = (done, total)
        elif "report" in message:
            self.report = cast("Report", message["report"])
        elif "failure" in message:
            self.failure = Failure.model_validate(message["failure"])
        else:
            self.messages.append(message)

    def notice_end(self) -> None:
        """Where the process is gone without a report or a failure, find the words for that."""
        if self.is_running:
            return
        self.read()
        if self.report is None and self.failure is None:
            self.failure = Failure(rank=self.rank, cause=Cause.DEATH, message=self._last_words())

    def _last_words(self) -> str:
        code = self.process.returncode
        who = f"rank {self.rank} (pid {self.pid})"
        told = code < 0 and -code in _TOLD_TO_END
        if code < 0:
            said = f"{who} was killed by {_signal_name(-code)}"
        else:
            said = f"{who} ended with exit code {code} before its work was done"
        if code == -signal.SIGKILL:
            return f"{said}; if nobody did that, the machine ran out of memory: fold the plan onto fewer ranks (--fold)"
        tail = "" if told else self._tail()
        return f"{said}; it wrote last: {tail}" if tail else said

    def _tail(self) -> str:
        size = os.fstat(self.output.fileno()).st_size
        data = os.pread(self.output.fileno(), _TAIL_BYTES, max(size - _TAIL_BYTES, 0))
        lines = [line.strip() for line in data.decode(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-_TAIL_LINES:])

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the rank and whatever it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def wait(self, within_s: float) -> bool:
        """Wait for the end of the process; return whether it came in time."""
        try:
            self.process.wait(timeout=max(within_s, 0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Give back what the launcher holds of it."""
        os.close(self.reports_fd)
        self.output.close()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()


def start(
    world: World,
    job_fd: int,
    environment: Mapping[str, str],
    output_folder: Path | None,
    *,
    takes_orders: bool = False,
) -> RankProcess:
    """Start the process of one rank; its output goes to a file of `output_folder`, without one to a nameless file.

    `takes_orders`: its standard input is a pipe, `process.stdin`, that the caller writes to. Raises InputError where
    the file cannot be made.
    """
    output = _output(world.rank, output_folder)
    read_fd, write_fd = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [
                *(sys.executable, "-P", "-m", "moiety.runtime.rank"),
                *(str(each) for each in (job_fd, write_fd, os.getpid())),
            ],
            env={**environment, **world.environment()},
            stdin=subprocess.PIPE if takes_orders else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(job_fd, write_fd),
            start_new_session=True,
        )
    except BaseException:
        os.close(read_fd)
        output.close()
        raise
    finally:
        os.close(write_fd)
    os.set_blocking(read_fd, False)
    return RankProcess(world.rank, process, read_fd, output)


def _output(rank: int, folder: Path | None) -> BinaryIO:
    if folder is None:
        return cast("BinaryIO", tempfile.TemporaryFile())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / f"rank-{rank}.log").open("wb+")
    except OSError as error:
        rule = f"cannot be written: {error.strerror or error}"
        raise InputError(rule, field="--rank-output", value=str(folder)) from None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
