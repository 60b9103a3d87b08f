"""What a verb prints, and where: tables or one JSON document on standard output, the rest on standard error."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from rich.console import RenderableType

JsonSwitch = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, and nothing else, on standard output.")
]
QuietSwitch = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]

UNSEEN_WIDTH = 110
"""Columns of tables that go to a file or a pipe."""


def complain(message: str) -> None:
    """Write an error as one line on standard error, what cannot be printed escaped."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    sys.stderr.write(f"moiety: error: {line}\n")


@dataclass(frozen=True, slots=True)
class Output:
    """Where results go; `json` leaves standard output to the one document, `quiet` to nobody."""

    json: bool
    quiet: bool

    @property
    def shows_tables(self) -> bool:
        """Whether people read standard output."""
        return not (self.json or self.quiet)

    def document(self, text: Callable[[], str]) -> None:
        """Print the JSON document, where it is wanted."""
        if self.json:
            sys.stdout.write(text())

    def tables(self, sections: Iterable[RenderableType]) -> None:
        """Print the sections, where people read them, with an empty line between."""
        if not self.shows_tables:
            return
        from rich.console import Console

        unseen = not sys.stdout.isatty() and "COLUMNS" not in os.environ
        console = Console(markup=False, emoji=False, highlight=False, width=UNSEEN_WIDTH if unseen else None)
        for section in sections:
            console.print(section)
            console.print()

    def note(self, text: str) -> None:
        """Write a line on standard error, unless quiet."""
        if not self.quiet:
            sys.stderr.write(f"moiety: {text}\n")

    def complain(self, text: str) -> None:
        """Write a line on standard error, quiet or not: it is why the exit code is not 0."""
        complain(text)

    @contextmanager
    def progress(self, what: str) -> Generator[Callable[[int, int], None] | None]:
        """Show a bar on standard error while the block runs, where that is a terminal; give what moves it."""
        if self.quiet or not sys.stderr.isatty():
            yield None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
