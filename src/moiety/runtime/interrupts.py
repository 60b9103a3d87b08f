"""Interrupts: signals that ask a run to end, noted when they come and obeyed where it is safe to."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """The first ending signal that has come, if any.

    An exception raised by the signal itself may arise anywhere, and libraries swallow it where it suits them ill: in
    the midst of an import, in a destructor. A process that swallows its interrupt never ends.
    """

    def __init__(self) -> None:
        self._number: int | None = None

    def obey(self) -> None:
        """Raise KeyboardInterrupt where the keyboard has interrupted, SystemExit for another signal that has come."""
        number, self._number = self._number, None
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number is not None:
            raise SystemExit(128 + number)  # as shells count it

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._number = number if self._number is None else self._number

    @contextmanager
    def noted(self) -> Generator[None]:
        """Note signals inside the block, those that are not ignored already; obey at its end what came too late."""
        if threading.current_thread() is not threading.main_thread():  # only that may say what signals do
            yield
            return
        heeded = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self.obey()
