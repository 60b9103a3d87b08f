"""When requests come and how long they are."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: seconds from the start, prompt tokens, output tokens."""

    at_s: float
    input_tokens: int
    output_tokens: int


def poisson(
    rate_per_s: float, input_tokens: int, output_tokens: int, *, count: int, seed: int = 0
) -> Iterator[Arrival]:
    """Yield `count` requests of equal length whose gaps are exponential; the same seed gives the same requests."""
    draws = random.Random(seed)  # noqa: S311 - a simulation, no secret
    now = 0.0
    for _ in range(count):
        now += draws.expovariate(rate_per_s)
        yield Arrival(now, input_tokens, output_tokens)


def together(input_tokens: int, output_tokens: int, *, count: int) -> Iterator[Arrival]:
    """Yield `count` requests of equal length that are all there from the start, as a closed loop takes them."""
    for _ in range(count):
        yield Arrival(0.0, input_tokens, output_tokens)


def trace(rows: Iterable[tuple[float, int, int]]) -> Iterator[Arrival]:
    """Yield the requests of a trace: (seconds, prompt tokens, output tokens), in order of time."""
    for at_s, input_tokens, output_tokens in rows:
        yield Arrival(at_s, input_tokens, output_tokens)
