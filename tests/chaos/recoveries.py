"""Recoveries: what each fault took, gated by its bar, and gathered for one table at the end of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pytest

PROPERTY = "recovery"


class Recover(Protocol):
    """Takes note of what a fault has taken; fails the test where that is more than the bar."""

    def __call__(self, fault: str, seconds: float, *, bar_s: float | None, of: str = "until it goes on") -> None:
        """Note `seconds` of a fault, and what they are `of`; without a bar they are shown alone."""
        ...


def recorder(record: Callable[[str, object], None]) -> Recover:
    """Return what notes recoveries as properties of the test's report, which also reach pytest from its workers."""

    def note(fault: str, seconds: float, *, bar_s: float | None, of: str = "until it goes on") -> None:
        record(PROPERTY, [fault, of, seconds, bar_s])
        assert bar_s is None or seconds <= bar_s, f"{fault}: {of}: {seconds:.2f} s, bar {bar_s:g} s"

    return note


def show(terminal: pytest.TerminalReporter) -> None:
    """Print the table of all recoveries, where there are any."""
    reports: Iterable[pytest.TestReport] = (*terminal.getreports("passed"), *terminal.getreports("failed"))
    rows = [
        value for each in reports if each.when == "call" for name, value in each.user_properties if name == PROPERTY
    ]
    if not rows:
        return
    terminal.section("recoveries")
    width = max(len(fault) for fault, *_ in rows)
    for fault, of, seconds, bar_s in rows:
        terminal.write_line(f"{fault:{width}}  {seconds:6.2f} s {of}" + ("" if bar_s is None else f"; bar {bar_s:g} s"))
