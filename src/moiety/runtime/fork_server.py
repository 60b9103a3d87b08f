"""The process that ranks are forked from: `python -m moiety.runtime.fork_server CONTROL JOB LAUNCHER MODULE`.

It imports MODULE, that of the job's function, and with it torch and transformers: seconds that a host pays once and not
for every rank. CONTROL and JOB are numbers of inherited descriptors: a socket to the launcher, whose pid is LAUNCHER,
and the file that holds the job. A request is a line of JSON, the variables of a rank's world, and comes with two
descriptors, the rank's channel and its output. Answers are lines too, see `_serve`.

A process may be forked only while it has one thread and no driver of a GPU open. Where that is not so after the
imports, or the system is not Linux, ranks get an interpreter each.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moiety.runtime import rank

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

_READ_BYTES = 1 << 16
_DRIVERS = frozenset({"/dev/nvidia-uvm", "/dev/kfd"})
"""What CUDA and HIP have open once they are initialised; a forked process could not use them any more."""
_CHECKS_BY_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Has torch ask for GPUs without initialising CUDA."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A rank that is to be started."""

    environment: Mapping[str, str]
    channel: int
    output: int


def main(arguments: Sequence[str]) -> int:
    """Start ranks as they are asked for, until the launcher is gone; in a rank that is forked, be that rank."""
    control_fd, job_fd, launcher = (int(each) for each in arguments[:3])
    rank.die_with(launcher)
    forks = sys.platform == "linux"
    if forks:
        gc.disable()  # hardly anything that is imported is garbage: looking for it takes a fifth of the imports' time
        _import(arguments[3])
        gc.enable()
        forks = _may_fork()
    gc.collect()
    gc.freeze()  # or collections would write to pages that are shared until then
    number = os.getpid()
    channel = _serve(control_fd, job_fd, forks=forks)
    return 0 if channel is None else rank.main(job_fd, channel, number)


def _import(module: str) -> None:
    """Import what every rank needs; what goes wrong with it is each rank's to report."""
    asked = os.environ.get(_CHECKS_BY_NVML)
    os.environ.setdefault(_CHECKS_BY_NVML, "1")
    with suppress(Exception):
        importlib.import_module(module)
    if asked is None:
        del os.environ[_CHECKS_BY_NVML]


def _may_fork() -> bool:
    """Return whether the process is in a state that a forked one can go on from.

    A first one is forked to see: numpy's BLAS ends its threads before that, and starts others when it needs them.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    opened = {os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()}
    return len(list(Path("/proc/self/task").iterdir())) == 1 and not opened & _DRIVERS


def _serve(control_fd: int, job_fd: int, *, forks: bool) -> int | None:
    """Return None when the launcher is gone, and in a forked rank its channel.

    Until then say `{"ready": true}`, of each request `{"started": pid}` or `{"failed": why}`, and of each rank that has
    ended `{"ended": [pid, code]}`.
    """
    with socket.socket(fileno=control_fd) as control, _noted_ends() as ends:
        control.set_inheritable(False)
        _say(control, {"ready": True})
        while True:
            readable, _, _ = select.select([control, ends], [], [])
            if ends in readable:
                _report_ends(control, ends)
            if control not in readable:
                continue
            request = _requested(control)
            if request is None:
                return None
            try:
                pid = _forked() if forks else _spawned(request, job_fd)
            except OSError as error:
                _say(control, {"failed": error.strerror or str(error)})
            else:
                if pid == 0:
                    _become(request)
                    return request.channel
                _say(control, {"started": pid})
            os.close(request.channel)
            os.close(request.output)


def _requested(control: socket.socket) -> _Request | None:
    """Return the next request; None where the launcher is gone."""
    data, descriptors, _, _ = socket.recv_fds(control, _READ_BYTES, 2)
    while data and not data.endswith(b"\n"):
        more = control.recv(_READ_BYTES)
        data = data + more if more else b""
    if not data:
        return None
    channel, output = descriptors
    return _Request(json.loads(data), channel, output)


def _say(control: socket.socket, message: Mapping[str, object]) -> None:
    with suppress(BrokenPipeError):  # the launcher is gone, and will be found so
        control.sendall(json.dumps(message).encode() + b"\n")


@contextmanager
def _noted_ends() -> Generator[socket.socket]:
    """Give a socket that has something to read when a rank has ended."""
    ends, noted = socket.socketpair()
    with ends, noted:
        ends.setblocking(False)  # noqa: FBT003 - the standard library's signature
        noted.setblocking(False)  # noqa: FBT003 - as above
        before = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(noted.fileno(), warn_on_full_buffer=False)
        try:
            yield ends
        finally:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, before)


def _report_ends(control: socket.socket, ends: socket.socket) -> None:
    """Bury the ranks that have ended, and tell the launcher."""
    with suppress(BlockingIOError):
        ends.recv(_READ_BYTES)
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            _say(control, {"ended": [pid, os.waitstatus_to_exitcode(status)]})


def _forked() -> int:
    """Fork; return the pid of the new process, which has a session of its own by then, and 0 in that one."""
    begun, beginning = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(begun)
        os.close(beginning)
        return 0
    os.close(beginning)
    os.read(begun, 1)  # nothing comes: it returns when the other end is closed
    os.close(begun)
    return pid


def _become(request: _Request) -> None:
    """Take over a rank's environment and output, which begins with what the imports have said."""
    sys.stdout.flush()
    sys.stderr.flush()
    said = os.pread(1, os.fstat(1).st_size, 0)
    for stream in (1, 2):
        os.dup2(request.output, stream)
    os.close(request.output)
    os.write(1, said)
    os.environ.update(request.environment)


def _spawned(request: _Request, job_fd: int) -> int:
    """Start a rank in an interpreter and session of its own; return its pid."""
    for each in (request.channel, job_fd):
        os.set_inheritable(each, True)  # noqa: FBT003 - the standard library's signature
    numbers = (job_fd, request.channel, os.getpid())
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", "moiety.runtime.rank", *(str(each) for each in numbers)],
        {**os.environ, **request.environment},
        file_actions=[(os.POSIX_SPAWN_DUP2, request.output, stream) for stream in (1, 2)],
        setsid=True,
        setsigmask=[],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
