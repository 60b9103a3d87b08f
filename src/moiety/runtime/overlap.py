"""Two-batch overlap: two micro-batches take turns, one computing while the other's exchange is on its way."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Result = TypeVar("Result")


class Turns:
    """Whose turn it is to compute.

    Each micro-batch runs in a thread of its own, but only one at a time: a thread computes until it has begun an
    exchange, then passes the turn on and waits for it to come back. Turns go round in a fixed order, so every rank
    begins its exchanges in the same order. Where one micro-batch runs alone, passing on does nothing.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: list[int] = []
        """Micro-batches that are not done, in the order of their turns; the first has the turn."""
        self._failed = False
        self._own = threading.local()

    @property
    def is_shared(self) -> bool:
        """Whether other micro-batches wait for their turn."""
        return getattr(self._own, "number", None) is not None and len(self._waiting) > 1

    def pass_on(self) -> None:
        """Let the next micro-batch compute; return when the turn is back."""
        if not self.is_shared:
            return
        number: int = self._own.number
        with self._condition:
            self._waiting.append(self._waiting.pop(0))
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._failed or self._waiting[0] == number)
            if self._failed:
                raise StoppedError

    def run(self, jobs: Sequence[Callable[[], Result]]) -> list[Result]:
        """Run the jobs, taking turns, and return their results; the first error of any is raised."""
        if len(jobs) == 1:
            return [jobs[0]()]
        results: dict[int, Result] = {}
        errors: dict[int, BaseException] = {}
        self._waiting, self._failed = list(range(len(jobs))), False

        def work(number: int) -> None:
            self._own.number = number
            with self._condition:
                self._condition.wait_for(lambda: self._failed or self._waiting[0] == number)
            try:
                if not self._failed:
                    results[number] = jobs[number]()
            except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that called
                errors[number] = error
            finally:
                with self._condition:
                    self._failed = self._failed or number in errors
                    self._waiting.remove(number)
                    self._condition.notify_all()

        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(1, len(jobs))]
        for thread in threads:
            thread.start()
        work(0)  # the first in the caller's own thread
        self._own.number = None
        for thread in threads:
            thread.join()
        for number in sorted(errors):
            if not isinstance(errors[number], StoppedError):
                raise errors[number]
        return [results[number] for number in range(len(jobs))]


class StoppedError(Exception):
    """Another micro-batch failed, so this one ends too."""
