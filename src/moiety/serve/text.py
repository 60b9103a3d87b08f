"""The text of a sequence as its tokens come, held back where it may still change or become a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no character yet."""


class TextSoFar:
    """Tokens in, text out. `text` only grows, and ends before the first stop string."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self.text = ""
        """What is certain."""
        self.is_stopped = False
        """Whether a stop string has come."""
        self._decode, self._stops = decode, tuple(stops)
        self._tokens: list[int] = []
        self._context, self._read = 0, 0
        self._held = ""

    def push(self, token: int) -> None:
        """Take in the next token.

        It is decoded after those of the piece before it, as tokenizers put spaces between tokens.
        """
        self._tokens.append(token)
        before = self._decode(self._tokens[self._context : self._read])
        after = self._decode(self._tokens[self._context :])
        if len(after) > len(before) and not after.endswith(_UNFINISHED):
            self._context, self._read = self._read, len(self._tokens)
            self._take(after[len(before) :])

    def finish(self) -> None:
        """Give out what was held back: no more tokens come."""
        if self.is_stopped:
            return
        before = self._decode(self._tokens[self._context : self._read])
        self._take(self._decode(self._tokens[self._context :])[len(before) :])
        if not self.is_stopped:
            self.text += self._held
            self._held = ""

    def _take(self, piece: str) -> None:
        held = self._held + piece
        places = [place for place in (held.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.text += held[: min(places)]
            self._held, self.is_stopped = "", True
            return
        kept = max((_overlap(held, stop) for stop in self._stops), default=0)
        self.text += held[: len(held) - kept]
        self._held = held[len(held) - kept :]


def _overlap(text: str, stop: str) -> int:
    """Return how many of the last characters of the text a stop string may begin with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if stop.startswith(text[-length:])), 0)
