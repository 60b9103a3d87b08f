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


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of requests, on average; each is drawn between a share of the longest and all of it, 1: all are alike."""

    input_tokens: int
    output_tokens: int
    shortest_share: float = 1.0

    def arrival(self, at_s: float, draws: random.Random) -> Arrival:
        """Return a request that comes then."""
        return Arrival(at_s, self._drawn(self.input_tokens, draws), self._drawn(self.output_tokens, draws))

    def _drawn(self, mean: int, draws: random.Random) -> int:
        return mean if self.shortest_share == 1 else max(round(drawn_tokens(mean, self.shortest_share, draws)), 1)


def drawn_tokens(mean: float, shortest_share: float, draws: random.Random) -> float:
    """Return a length that is drawn uniformly between a share of the longest and all of it, around a mean."""
    return mean * 2 / (1 + shortest_share) * (shortest_share + (1 - shortest_share) * draws.random())


def poisson(rate_per_s: float, lengths: Lengths, *, count: int, seed: int = 0) -> Iterator[Arrival]:
    """Yield `count` requests whose gaps are exponential; the same seed gives the same requests."""
    draws = random.Random(seed)  # noqa: S311 - a simulation, no secret
    now = 0.0
    for _ in range(count):
        now += draws.expovariate(rate_per_s)
        yield lengths.arrival(now, draws)


def together(lengths: Lengths, *, count: int, seed: int = 0) -> Iterator[Arrival]:
    """Yield `count` requests that are all there from the start, as a closed loop takes them."""
    draws = random.Random(seed)  # noqa: S311 - a simulation, no secret
    for _ in range(count):
        yield lengths.arrival(0.0, draws)


def trace(rows: Iterable[tuple[float, int, int]]) -> Iterator[Arrival]:
    """Yield the requests of a trace: (seconds, prompt tokens, output tokens), in order of time."""
    for at_s, input_tokens, output_tokens in rows:
        yield Arrival(at_s, input_tokens, output_tokens)
