"""How the tests run: Hypothesis without deadlines, as the machine may be busy; Triton's kernels in its interpreter."""

import os

import pytest
from hypothesis import settings

from tests.chaos import recoveries

# No test needs a GPU. Triton reads this when it is first imported, and torch or transformers may be the first to do so.
os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the faults of the chaos suite took."""
    recoveries.show(terminalreporter)
