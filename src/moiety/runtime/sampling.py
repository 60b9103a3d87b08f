"""Sampling: the next token of each sequence from its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

GREEDY_BELOW = 0.01
"""Temperatures below it leave nothing to chance, and logits divided by smaller ones end beyond FP32."""
NO_TOKEN = -1
"""In the place of a token where the largest logit is not finite: none that came of them would mean anything."""


class Room(NamedTuple):
    """Memory that the most likely tokens of some rows are found in; each [rows]."""

    tokens: torch.Tensor
    """int64."""
    largest: torch.Tensor
    """In the format of the logits."""
    is_none: torch.Tensor
    """bool."""

    @classmethod
    def of(cls, rows: int, dtype: torch.dtype, device: torch.device) -> Room:
        """Return room for so many rows of logits of that format."""
        return cls(*(torch.empty(rows, dtype=each, device=device) for each in (torch.int64, dtype, torch.bool)))

    def first(self, rows: int) -> Room:
        """Return the part of it that so many rows take."""
        return Room(*(each[:rows] for each in self))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn; below `GREEDY_BELOW` it is the most likely one (greedy)."""

    temperature: float = 0.0
    top_p: float = 1.0
    """Drawn from the fewest tokens whose probabilities add up to it (nucleus sampling, arXiv 1904.09751)."""
    top_k: int = 0
    """Drawn from so many of the most likely tokens; 0: from all."""
    seed: int = 0

    def draw(
        self,
        logits: torch.Tensor,
        sequences: Sequence[int],
        places: Sequence[int],
        room: Room | None = None,
    ) -> torch.Tensor:
        """Return the next token of each row of `logits` [rows, vocabulary], int64 [rows]; greedy ones in a `room`.

        `NO_TOKEN` stands for that of a row whose largest logit is not finite (divided by the temperature).

        A row's draw depends on the seed, on the number of its sequence and on its place in it, and on nothing else: it
        is the same on every rank, in whatever batch the sequence is computed.
        """
        if self.temperature < GREEDY_BELOW:
            return most_likely(logits, Room.of(len(logits), logits.dtype, logits.device) if room is None else room)
        scaled = logits.float() / self.temperature
        is_none = ~scaled.amax(dim=-1).isfinite()
        probabilities = torch.softmax(scaled.masked_fill(is_none[:, None], 0), dim=-1)
        sorted_probabilities, order = probabilities.sort(dim=-1, descending=True)
        before = sorted_probabilities.cumsum(dim=-1) - sorted_probabilities
        kept = before < self.top_p
        if self.top_k:
            kept[:, self.top_k :] = False
        kept[:, 0] = True
        weights = (sorted_probabilities * kept).cpu()
        drawn = [
            torch.multinomial(row, 1, generator=_generator(self.seed, sequence, place))
            for row, sequence, place in zip(weights, sequences, places, strict=True)
        ]
        return order.gather(1, torch.stack(drawn).to(order.device))[:, 0].masked_fill(is_none, NO_TOKEN)


def most_likely(logits: torch.Tensor, room: Room) -> torch.Tensor:
    """Return the most likely token of each row of `logits` [rows, vocabulary], or `NO_TOKEN`, int64 in the `room`."""
    torch.max(logits, dim=-1, out=(room.largest, room.tokens))
    torch.sub(room.largest, room.largest, out=room.largest)  # no number, unless it was finite
    torch.ne(room.largest, room.largest, out=room.is_none)
    return room.tokens.masked_fill_(room.is_none, NO_TOKEN)


def draw_each(
    logits: torch.Tensor, samplings: Sequence[Sampling], sequences: Sequence[int], places: Sequence[int]
) -> torch.Tensor:
    """Return the next token of each row of `logits` [rows, vocabulary], each drawn in its own way, int64 [rows]."""
    found = torch.empty(len(samplings), dtype=torch.int64, device=logits.device)
    for sampling in dict.fromkeys(samplings):
        rows = [row for row, each in enumerate(samplings) if each == sampling]
        chosen = logits if len(rows) == len(samplings) else logits[rows]
        found[rows] = sampling.draw(chosen, [sequences[row] for row in rows], [places[row] for row in rows])
    return found


_GOLDEN = 0x9E3779B97F4A7C15


def _generator(seed: int, sequence: int, place: int) -> torch.Generator:
    mixed = ((seed * _GOLDEN + sequence) * _GOLDEN + place) % 2**63
    return torch.Generator().manual_seed(mixed)
