"""Faults that take more than a signal."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tests.serve.servers import send

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def slowed(pid: int, run_s: float, rest_s: float) -> Generator[None]:
    """Let a process run for `run_s`, then rest for `rest_s`, and so on during the block, or until it is gone."""
    is_over = threading.Event()

    def work() -> None:
        with suppress(ProcessLookupError):
            while not is_over.wait(run_s):
                send(pid, signal.SIGSTOP)
                is_over.wait(rest_s)
                send(pid, signal.SIGCONT)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
