"""The process of one rank that our launcher has started: forked, or `python -m moiety.runtime.rank JOB CHANNEL PARENT`.

JOB and CHANNEL are numbers of inherited descriptors: a file that holds the job, a socket for JSON lines to and from the
launcher. PARENT is the pid of the process that has started it (`fork_server.py`). Standard error is nobody's business
unless the rank dies without a report.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from typing import NoReturn

from moiety.errors import MoietyError
from moiety.runtime.channel import Channel
from moiety.runtime.failure import failure_of
from moiety.runtime.job import Job
from moiety.runtime.post import Post, work
from moiety.runtime.world import world_of

_PR_SET_PDEATHSIG = 1


def main(job_fd: int, channel_fd: int, parent: int) -> int:
    """Do the job of one rank; return 0 when it is reported, and leave at once with an error that is reported."""
    channel = Channel(channel_fd)
    die_with(parent)
    world = world_of(os.environ)
    assert world is not None, "the launcher numbers its ranks"

    try:
        job = Job.model_validate_json(os.pread(job_fd, os.fstat(job_fd).st_size, 0))
        post = Post(job, world, lambda done, total: channel.say({"progress": [done, total]}), channel)
        channel.say({"report": work(post)})
    except MoietyError as error:
        channel.say({"failure": failure_of(world.rank, error).model_dump(mode="json")})
        _leave(error.exit_code)
    except Exception as error:  # noqa: BLE001 - the launcher shows it; there is nobody above to raise it to
        traceback.print_exc()
        channel.say({"failure": failure_of(world.rank, error).model_dump(mode="json")})
        _leave(1)
    return 0


def die_with(parent: int) -> None:
    """See to it that this process ends when its parent does, whatever ends that (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it is gone already
        _leave(1)


def _leave(code: int) -> NoReturn:
    """End the process, whatever its threads still wait for."""
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(*(int(each) for each in sys.argv[1:])))
