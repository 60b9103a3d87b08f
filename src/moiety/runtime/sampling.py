"""Sampling: the next token of each sequence from its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

GREEDY_BELOW = 0.01
"""Temperatures below it leave nothing to chance, and logits divided by smaller ones end beyond FP32."""


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
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the next token of each row of `logits` [rows, vocabulary], int64 [rows]; greedy ones in `out`, if any.

        A row's draw depends on the seed, on the number of its sequence and on its place in it, and on nothing else: it
        is the same on every rank, in whatever batch the sequence is computed.
        """
        if self.temperature < GREEDY_BELOW:
            return torch.argmax(logits, dim=-1, out=out)
        probabilities = torch.softmax(logits.float() / self.temperature, dim=-1)
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
        return order.gather(1, torch.stack(drawn).to(order.device))[:, 0]


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
