"""How the tests run: Hypothesis without deadlines, as the machine may be busy; Triton's kernels in its interpreter.

Torch has one thread: tests run side by side, and threads that share a core wait for each other ten times as long as
tiny models compute.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.chaos import recoveries

if TYPE_CHECKING:
    from collections.abc import Generator

# No test needs a GPU. Triton reads this when it is first imported, and torch or transformers may be the first to do so.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Containers often forbid it, and every process that tests start would compile our modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Shells have background jobs ignore it, and what these start would too: tests interrupt processes.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


LONGEST = ("runtime/training", "runtime/model", "runtime/elastic", "chaos", "serve", "runtime")
"""Folders of the files that take longest: no worker is to be left with one of them at the end. Files whose processes
mostly wait for each other stand together, and leave the cores to their ranks."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    path = item.path.as_posix()
    return next((turn for turn, folder in enumerate(LONGEST) if f"/tests/{folder}/" in path), len(LONGEST))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage among what is imported, torch with it: it takes longer than it is worth."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the faults of the chaos suite took."""
    recoveries.show(terminalreporter)
