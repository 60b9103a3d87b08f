"""Interrupts: a signal is noted wherever it comes, and obeyed where that is safe."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from moiety.runtime.interrupts import Interrupts

if TYPE_CHECKING:
    from collections.abc import Iterator

CODES = {signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(autouse=True)
def _none_is_ignored() -> Iterator[None]:
    """Have no signal ignored that `nohup` or a shell may have told the tests to ignore."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in CODES}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupted(*numbers: signal.Signals) -> None:
    with Interrupts().noted():
        for number in numbers:
            os.kill(os.getpid(), number)


def test_an_interrupt_that_a_library_would_swallow_is_obeyed_later() -> None:
    interrupts = Interrupts()
    with interrupts.noted():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.obey()
        interrupts.obey()  # once is enough


@pytest.mark.parametrize("number", sorted(CODES))
def test_what_comes_too_late_is_obeyed_at_the_end(number: signal.Signals) -> None:
    with pytest.raises(SystemExit) as left:
        interrupted(number, signal.SIGINT)  # the first counts
    assert left.value.code == CODES[number]


def test_handlers_are_put_back_and_what_is_ignored_stays_so() -> None:
    before = signal.getsignal(signal.SIGTERM)
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts().noted():
            assert signal.getsignal(signal.SIGTERM) is not before
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, hang_up)
    assert signal.getsignal(signal.SIGTERM) is before
