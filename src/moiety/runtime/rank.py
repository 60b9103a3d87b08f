"""The process of one rank, as our launcher starts it: `python -m moiety.runtime.rank JOB REPORTS LAUNCHER`.

JOB and REPORTS are numbers of inherited descriptors: a file that holds the job, a pipe for JSON lines to the launcher,
whose pid is LAUNCHER. Orders, where the job has any, come on standard input. Standard error is nobody's business
unless the rank dies without a report.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, NoReturn

from moiety.errors import MoietyError
from moiety.runtime.failure import failure_of
from moiety.runtime.job import Job
from moiety.runtime.post import Post, work
from moiety.runtime.world import world_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    """Do the job of one rank; return 0 when it is reported, and leave at once with an error that is reported."""
    job_fd, reports_fd, launcher = (int(each) for each in arguments)
    os.set_inheritable(reports_fd, False)  # noqa: FBT003 - the operating system's own flag
    die_with(launcher)
    world = world_of(os.environ)
    assert world is not None, "the launcher numbers its ranks"

    lock = threading.Lock()

    def say(message: Mapping[str, object]) -> None:
        line = json.dumps(message, allow_nan=False).encode() + b"\n"
        with lock:
            while line:
                line = line[os.write(reports_fd, line) :]

    try:
        job = Job.model_validate_json(os.pread(job_fd, os.fstat(job_fd).st_size, 0))
        post = Post(job, world, lambda done, total: say({"progress": [done, total]}), say=say)
        say({"report": work(post)})
    except MoietyError as error:
        say({"failure": failure_of(world.rank, error).model_dump(mode="json")})
        _leave(error.exit_code)
    except Exception as error:  # noqa: BLE001 - the launcher shows it; there is nobody above to raise it to
        traceback.print_exc()
        say({"failure": failure_of(world.rank, error).model_dump(mode="json")})
        _leave(1)
    return 0


def die_with(launcher: int) -> None:
    """See to it that this process ends when the launcher does, whatever ends that (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it is gone already
        _leave(1)


def _leave(code: int) -> NoReturn:
    """End the process, whatever its threads still wait for."""
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
