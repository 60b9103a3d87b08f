"""Signals that ask a command to end, for those that go on until they are told to."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable


@contextmanager
def ended_by(numbers: Iterable[signal.Signals]) -> Generator[threading.Event]:
    """Give an event that any of the signals sets, so that what is under way ends well; restore what they did before."""
    ended = threading.Event()
    before = {number: signal.signal(number, lambda _number, _frame: ended.set()) for number in numbers}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
