"""Last words: how a process came to its end, and what it wrote before."""

from __future__ import annotations

import os
import signal
from typing import BinaryIO

_TAIL_BYTES = 4096
_TAIL_LINES = 5
_TOLD_TO_END = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that say all there is to say: what the process wrote before has nothing to do with them."""


def last_words(who: str, code: int, output: BinaryIO) -> str:
    """Return the end of a process in words; `code` is as `subprocess` has it, `output` the file that it wrote to."""
    told = code < 0 and -code in _TOLD_TO_END
    if code < 0:
        said = f"{who} was killed by {_signal_name(-code)}"
    else:
        said = f"{who} ended with exit code {code} before its work was done"
    if code == -signal.SIGKILL:
        return f"{said}; if nobody did that, the machine ran out of memory: fold the plan onto fewer ranks (--fold)"
    tail = "" if told else _tail(output)
    return f"{said}; it wrote last: {tail}" if tail else said


def _tail(output: BinaryIO) -> str:
    size = os.fstat(output.fileno()).st_size
    data = os.pread(output.fileno(), _TAIL_BYTES, max(size - _TAIL_BYTES, 0))
    lines = [line.strip() for line in data.decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-_TAIL_LINES:])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
