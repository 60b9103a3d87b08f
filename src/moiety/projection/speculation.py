"""Speculative decoding: a step checks some guessed tokens of each sequence beside the one that it emits."""

from __future__ import annotations


def tokens_per_step(draft_tokens: int, acceptance: float) -> float:
    """Return the tokens that a sequence advances by in a step: guesses count up to the first that is wrong.

    A guess is right with the same chance whatever its place, so 1 + a + a^2 + ... + a^draft_tokens.
    """
    return sum(acceptance**place for place in range(draft_tokens + 1))
