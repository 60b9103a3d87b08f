"""How the tests run: Hypothesis without deadlines, as the machine may be busy; Triton's kernels in its interpreter.

Torch has one thread: tests run side by side, and threads that share a core wait for each other ten times as long as
tiny models compute.
"""

from __future__ import annotations

import gc
import math
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.chaos import recoveries

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

# No test needs a GPU. Triton reads this when it is first imported, and torch or transformers may be the first to do so.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Shells have background jobs ignore it, and what these start would too: tests interrupt processes.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


COMPUTING = ("runtime/training", "runtime/model", "runtime")
WAITING = ("chaos", "serve", "runtime/elastic", "gpus")
"""Folders of the files that take longest: those whose processes compute, and those whose processes mostly wait for each
other. No worker is to be left with one of them at the end, and beside each other they leave no core idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first: in turns a file that computes and one that waits."""
    places = {item.path: _place(item.path) for item in items}
    taken: Counter[str] = Counter()
    turns: dict[Path, float] = {}
    for path, (kind, _) in sorted(places.items(), key=lambda each: each[1][1]):
        turns[path] = taken[kind] if kind else math.inf
        taken[kind] += 1
    items.sort(key=lambda item: turns[item.path])


def _place(path: Path) -> tuple[str, int]:
    """Return what a file's processes do most, nothing where it does not take long, and when it is its folder's turn."""
    for kind, folders in (("waits", WAITING), ("computes", COMPUTING)):
        for turn, folder in enumerate(folders):
            if f"/tests/{folder}/" in path.as_posix():
                return kind, turn
    return "", 0


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
