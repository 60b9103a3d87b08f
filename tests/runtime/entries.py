"""What ranks do in the tests of the launch: functions that a job names instead of the engine.

The job's checkpoint is a folder for notes, its seed the rank that is in trouble.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from moiety.errors import InputError
from moiety.runtime.comm.peer_lost import PeerLost

if TYPE_CHECKING:
    from moiety.runtime.post import Post, Report

HANG_S = 600


def meet(post: Post) -> Report:
    """Wait until every rank is there, and has come to the store."""
    _arrive(post)
    post.store.add("come", 1)
    while post.store.add("come", 0) < post.world.size:
        time.sleep(0.01)
    post.progress(1, 2)
    sys.stderr.write("a library warns\n")
    rank = {"threads": int(os.environ["OMP_NUM_THREADS"]), "pid": os.getpid()}
    return {"outputs": [[post.world.rank]], "measured": {"ttft_s": 0.5}, "rank": rank}


def big(_post: Post) -> Report:
    """Report more than a pipe holds."""
    return {"outputs": [list(range(200_000))]}


def refuse(post: Post) -> Report:
    """Find something wrong with the input on the ranks from the job's on, and lose a peer on those below."""
    _arrive(post)
    if post.world.rank >= post.job.seed:
        rule = f"must hold the tensor, says rank {post.world.rank}"
        raise InputError(rule, source="model.safetensors", field="lm_head", remedy="fetch it again")
    raise PeerLost("is gone", label="world", waited_s=0.1, rank=post.job.seed)


def kill(post: Post) -> Report:
    """Be killed on the job's rank; the others lose a peer, which they notice first."""
    _arrive(post)
    if post.world.rank == post.job.seed:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    raise PeerLost("is gone", label="world", waited_s=0.1, rank=post.job.seed)


def stumble(post: Post) -> Report:
    """Meet with an error that nobody expected on the job's rank, while the others hang and will not hear of SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _arrive(post)
    if post.world.rank == post.job.seed:
        raise KeyError("the map")
    time.sleep(HANG_S)
    return {}


def vanish(post: Post) -> Report:
    """Leave without a word to the launcher on the job's rank, but with some on standard error."""
    _arrive(post)
    if post.world.rank == post.job.seed:
        sys.stderr.write("terminate called\nthe stack was smashed\n")
        sys.stderr.flush()
        os._exit(7)
    time.sleep(HANG_S)
    return {}


def hang(post: Post) -> Report:
    """Never come to an end."""
    _arrive(post)
    time.sleep(HANG_S)
    return {}


def lost(post: Post) -> Report:
    """Lose a peer on every rank, without a cause that any of them could name."""
    _arrive(post)
    raise PeerLost("was silent", label="world", waited_s=300, rank=1 - post.world.rank)


def _arrive(post: Post) -> None:
    """Leave this rank's pid in the job's folder, and wait until every rank has done so."""
    notes = Path(post.job.checkpoint)
    if post.world.rank == 0:  # before its pid, so that whoever knows the pids can read it
        (notes / "port").write_text(str(post.world.port))
    (notes / f"{post.world.rank}.pid").write_text(str(os.getpid()))
    while len(list(notes.glob("*.pid"))) < post.world.size:
        time.sleep(0.01)
