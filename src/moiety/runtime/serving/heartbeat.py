"""Heartbeat: a sign of life that a rank gives whatever its main thread does, and that a stopped process does not."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

PERIOD_S = 0.25


@contextmanager
def heartbeat(say: Callable[[Mapping[str, object]], None]) -> Generator[None]:
    """Say `{"alive": true}` every `PERIOD_S` during the block, from a thread of its own."""
    done = threading.Event()

    def beat() -> None:
        try:
            say({"alive": True})
            while not done.wait(PERIOD_S):
                say({"alive": True})
        except BrokenPipeError:  # nobody listens any more; the rank is about to be ended
            return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
