"""The one tree of errors a user can meet; each message gives the place, the value, the rule and the way out."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class MoietyError(Exception):
    """Anything that Moiety tells its user instead of a traceback; the command line exits with `exit_code`."""

    exit_code = 2


class InputError(MoietyError):
    """Something that came in from outside is wrong.

    `rule` is the sentence that says what must hold; `source` is the file or argument, `field` the path inside it,
    `value` what was found there, `remedy` the way out.
    """

    def __init__(
        self,
        rule: str,
        *,
        source: str | None = None,
        field: str | None = None,
        value: object = None,
        remedy: str | None = None,
    ) -> None:
        self.rule = rule
        self.source = source
        self.field = field
        self.value = value
        self.remedy = remedy
        super().__init__(self._message())

    def _message(self) -> str:
        place = ": ".join(part for part in (self.source, self.field) if part)
        if self.value is not None and self.field is not None:
            place += f" = {_shorten(self.value)}"
        message = f"{place}: {self.rule}" if place else self.rule
        return f"{message}; {self.remedy}" if self.remedy else message

    def at(self, source: str) -> InputError:
        """Return the same error with the file it came from, where it did not yet name one."""
        return InputError(
            self.rule, source=self.source or source, field=self.field, value=self.value, remedy=self.remedy
        )


class OutputError(MoietyError):
    """A file could not be written; nothing was left half-written."""


def _shorten(value: object, limit: int = 80) -> str:
    if isinstance(value, (str, bytes)) and len(value) > limit:
        value = value[:limit]
    try:
        text = value if isinstance(value, str) and value.isidentifier() else repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints, or nesting without end
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the way out for an unknown name: the nearest known one, or the list of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name[:80].lower(), known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}"
