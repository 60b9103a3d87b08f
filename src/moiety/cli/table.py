"""The one look of all tables: side by side where they fit, row under row where the terminal is too narrow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

_GAP = 3
_LEAST_TEXT = 28
"""Width that the last column keeps at least; narrower, the rows go one under the other."""
_LONG_CELL = 40
_HEAD = 2
"""Cells that head a row when the rows go one under the other."""
_INDENT = 4


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows under named columns; numbers stand on the right, and the last column takes what width is left."""

    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = [column.lstrip(">~") for column in self.columns]
        widths = [
            max(len(line) for row in self.cells for line in (names[i], *row[i].splitlines())) for i in range(len(names))
        ]
        kept = sum(widths[:-1]) + _GAP * (len(widths) - 1)
        if kept + min(widths[-1], _LEAST_TEXT) <= options.max_width:
            yield self._side_by_side(names, widths[:-1], options.max_width - kept)
        else:
            yield from self._under_each_other(names)

    def _side_by_side(self, names: Sequence[str], widths: Sequence[int], left: int) -> Table:
        """Return the table with `left` characters for its last column."""
        made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for column, name, width in zip(self.columns, names, (*widths, None), strict=True):
            justify = "right" if column.startswith(">") else "left"
            made.add_column(Text(name), justify=justify, min_width=width, overflow="fold")
        cut = self.columns[-1].startswith("~")
        for *first, last in self.cells:
            shown = f"{last[: left - 1]}…" if cut and len(last) > left else last
            made.add_row(*(Text(cell) for cell in (*first, shown)))
        return made

    def _under_each_other(self, names: Sequence[str]) -> RenderResult:
        for row in self.cells:
            yield Text("  ".join(filter(None, row[:_HEAD])))
            inner = list(zip(names[_HEAD:], row[_HEAD:], strict=True))
            short = [f"{name} {cell}".strip() for name, cell in inner if cell and len(cell) <= _LONG_CELL]
            if short:
                yield Padding(Text("; ".join(short)), (0, 0, 0, _INDENT))
            for _, cell in inner:
                if len(cell) > _LONG_CELL:
                    yield Padding(Text(cell), (0, 0, 0, _INDENT))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, notes: Sequence[str] = ()) -> Group:
    """Return a table under its title, notes below it; without rows the title alone.

    A column whose name begins with `>` holds numbers and stands on the right; one with `~` is cut to a line.
    """
    cells = tuple(tuple(row) for row in rows)
    below = [Text(each, style="dim") for each in notes]
    return Group(Text(title, style="bold"), *([Rows(tuple(columns), cells)] if cells else []), *below)


def pairs(title: str, rows: Iterable[tuple[str, str]]) -> Group:
    """Return a list of names and values under its title."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(Text(f"  {name}"), Text(value))
    return Group(Text(title, style="bold"), made)


def listing(title: str, lines: Iterable[str]) -> Group:
    """Return lines under a title."""
    return Group(Text(title, style="bold"), *(Padding(Text(line), (0, 0, 0, 2)) for line in lines))
