"""RankProcess: one rank that our launcher has started: what it says and is told, its own output, its end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, cast

from moiety.errors import InputError
from moiety.runtime.channel import message_of
from moiety.runtime.failure import Cause, Failure
from moiety.runtime.last_words import last_words

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping
    from pathlib import Path

    from moiety.runtime.channel import Message
    from moiety.runtime.fork_server_process import Fork, ForkServer
    from moiety.runtime.post import Report
    from moiety.runtime.world import World

_READ_BYTES = 1 << 16


@dataclass(slots=True)
class RankProcess:
    """A rank in a process and session of its own, so that a keyboard's interrupt reaches the launcher alone."""

    rank: int
    process: Fork
    channel: socket.socket
    """To and from the rank; it never blocks."""
    output: BinaryIO
    """What the rank writes on its standard output and error: libraries' warnings, a traceback."""
    progress: tuple[int, int] | None = None
    report: Report | None = None
    failure: Failure | None = None
    others: list[Message] = field(default_factory=list["Message"])
    """What it has said beside these, for whoever gave it its work."""
    _unread: bytes = b""
    _unsent: bytearray = field(default_factory=bytearray)

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.process.code() is None

    def read(self) -> bool:
        """Take in what the rank has reported since; return whether it may report more."""
        is_open = True
        with contextlib.suppress(BlockingIOError):
            while data := self._received():
                self._unread += data
            is_open = False
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            self._take(message_of(line))
        return is_open

    def _received(self) -> bytes:
        try:
            return self.channel.recv(_READ_BYTES)
        except ConnectionError:  # it went without having read all that it was told
            return b""

    def _take(self, message: Message) -> None:
        if "progress" in message:
            done, total = cast("tuple[int, int]", message["progress"])
            self.progress = (done, total)
        elif "report" in message:
            self.report = cast("Report", message["report"])
        elif "failure" in message:
            self.failure = Failure.model_validate(message["failure"])
        else:
            self.others.append(message)

    def tell(self, message: Mapping[str, object]) -> None:
        """Send the rank a message, as far as it can be sent now; `push` sends the rest."""
        self._unsent += json.dumps(message, allow_nan=False).encode() + b"\n"
        self.push()

    @property
    def is_untold(self) -> bool:
        """Whether something waits to be sent to the rank."""
        return bool(self._unsent)

    def push(self) -> None:
        """Send what the rank has room for; what is for a rank that is gone is dropped."""
        try:
            while self._unsent:
                del self._unsent[: self.channel.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()

    def notice_end(self) -> None:
        """Where the process is gone without a report or a failure, find the words for that."""
        code = self.process.code()
        if code is None:
            return
        self.read()
        if self.report is None and self.failure is None:
            said = last_words(f"rank {self.rank} (pid {self.pid})", code, self.output)
            self.failure = Failure(rank=self.rank, cause=Cause.DEATH, message=said)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the rank and whatever it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def wait(self, within_s: float) -> bool:
        """Wait for the end of the process; return whether it came in time."""
        return self.process.code(max(within_s, 0.0)) is not None

    def close(self) -> None:
        """Give back what the launcher holds of it."""
        self.channel.close()
        self.output.close()


def start(world: World, forks: ForkServer, output_folder: Path | None) -> RankProcess:
    """Start the process of one rank; its output goes to a file of `output_folder`, without one to a nameless file.

    Raises InputError where that file cannot be made, RankFailedError where the process cannot.
    """
    output = _output(world.rank, output_folder)
    ours, theirs = socket.socketpair()
    try:
        process = forks.fork(world.environment(), theirs, output.fileno())
    except BaseException:
        ours.close()
        output.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)  # noqa: FBT003 - the standard library's signature
    return RankProcess(world.rank, process, ours, output)


def _output(rank: int, folder: Path | None) -> BinaryIO:
    if folder is None:
        return cast("BinaryIO", tempfile.TemporaryFile())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / f"rank-{rank}.log").open("wb+")
    except OSError as error:
        rule = f"cannot be written: {error.strerror or error}"
        raise InputError(rule, field="--rank-output", value=str(folder)) from None
