"""Failure: how a rank came to an end, and which of several failures is the cause of the others."""

from __future__ import annotations

import sys
import traceback
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from moiety.errors import MoietyError
from moiety.records import Record
from moiety.runtime.comm.peer_lost import PeerLost

if TYPE_CHECKING:
    from collections.abc import Iterable


class RankFailedError(MoietyError):
    """A rank came to an end before its work was done, and the others were ended."""


class Cause(IntEnum):
    """What a rank failed of; the lower, the less it can have been the consequence of another's failure."""

    INPUT = 0
    """Something that came in from outside is wrong."""
    DEATH = 1
    """The process was killed, or left without a word."""
    FAULT = 2
    """An error that nobody expected."""
    CONSEQUENCE = 3
    """A peer was lost."""


class Failure(Record):
    """The end of one rank, in words for the user."""

    rank: int
    cause: Cause
    message: str


def failure_of(rank: int, error: BaseException) -> Failure:
    """Return what the error of a rank means for the run."""
    if isinstance(error, PeerLost):
        return Failure(rank=rank, cause=Cause.CONSEQUENCE, message=f"rank {rank}: {error}")
    if isinstance(error, MoietyError):
        return Failure(rank=rank, cause=Cause.INPUT, message=str(error))
    first = next(iter(str(error).splitlines()), "")
    words = f"rank {rank}: {type(error).__name__}: {first}".rstrip(": ") + _place(error)
    return Failure(rank=rank, cause=Cause.CONSEQUENCE if _lost_a_peer(error) else Cause.FAULT, message=words)


def first_cause(failures: Iterable[Failure]) -> Failure:
    """Return the failure that the others may have followed from; the lowest rank's among equals."""
    return min(failures, key=lambda each: (each.cause, each.rank))


def _lost_a_peer(error: BaseException) -> bool:
    """Return whether torch complains of another process that is gone, such as the store's host."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and isinstance(error, distributed.DistError)


def _place(error: BaseException) -> str:
    """Return where in the code an unexpected error arose."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
