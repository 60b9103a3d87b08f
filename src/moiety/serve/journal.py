"""The journal: every sequence in flight with the tokens accepted for it, from which any ranks can go on."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.serve.text import TextSoFar

FinishReason = Literal["stop", "length"]

_arrivals = itertools.count()
_SUSPECT = 2
"""Losses in a row after which a sequence is computed alone: one may be the machine's, of two nobody knows whose."""
MOST_LOSSES = 3
"""Losses in a row after which it is not tried again: the last time nothing else was computed."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How the next tokens of a sequence are drawn."""

    temperature: float = 0.0
    """0: the most likely token."""
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    number: int = 0
    """Which of the sequences that share the seed it is."""


@dataclass(slots=True, eq=False)
class Entry:
    """One sequence: its prompt, the tokens accepted so far, and what ends it.

    A token is accepted once, in order, when all ranks have finished its step; nobody draws it again.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    drawing: Drawing
    stop_tokens: frozenset[int]
    text: TextSoFar | None
    """None without a tokenizer."""
    changed: Callable[[], None]
    """Called whenever the entry has changed."""
    accepted: list[int] = field(default_factory=list[int])
    finish_reason: FinishReason | None = None
    error: str | None = None
    """Why no more tokens come, where the sequence cannot be finished."""
    number: int = field(default_factory=lambda: next(_arrivals))
    """Place in the order of arrival."""
    arrived_s: float = field(default_factory=time.monotonic)
    gap_s: float = 0.0
    """From the token before to the last one; of the first one, from the arrival."""
    num_losses: int = 0
    """How often ranks were lost in a step that had it, since its last token."""
    _heard_s: float | None = None

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what ends the ranks."""
        return self.num_losses >= _SUSPECT

    @property
    def is_over(self) -> bool:
        """Whether no more tokens come."""
        return self.finish_reason is not None or self.error is not None

    def known(self, start: int, most: int) -> tuple[int, ...]:
        """Return up to `most` known tokens from place `start` on: of the prompt, then accepted ones."""
        length = len(self.prompt)
        if start >= length:
            return tuple(self.accepted[start - length : start - length + most])
        return (*self.prompt[start : start + most], *self.accepted[: max(start + most - length, 0)])

    @property
    def num_known(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.prompt) + len(self.accepted)

    def accept(self, token: int, now_s: float) -> None:
        """Take the next token, and see whether it is the last."""
        self.accepted.append(token)
        self.num_losses = 0
        self.gap_s = now_s - (self.arrived_s if self._heard_s is None else self._heard_s)
        self._heard_s = now_s
        if self.text is not None:
            self.text.push(token)
        if token in self.stop_tokens or (self.text is not None and self.text.is_stopped):
            self._finish("stop")
        elif len(self.accepted) >= self.max_tokens:
            self._finish("length")
        self.changed()

    def fail(self, reason: str) -> None:
        """Say that no more tokens come, and why."""
        if not self.is_over:
            self.error = reason
            self.changed()

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        if self.text is not None:
            self.text.finish()
            if self.text.is_stopped:
                self.finish_reason = "stop"
