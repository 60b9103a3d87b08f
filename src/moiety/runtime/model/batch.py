"""Batch: the tokens of one micro-batch of an attention group, packed one after the other without padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one sequence that are computed in one step."""

    slot: int
    """Row of the KV cache that holds the sequence."""
    start: int
    """Tokens of the sequence that are in the cache already."""
    token_ids: tuple[int, ...]
    emits: bool
    """Whether the last of these tokens asks for the next one (not so within a prompt that is computed in chunks)."""

    @property
    def end(self) -> int:
        """Tokens of the sequence that are in the cache afterwards."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Segments of different sequences, packed."""

    segments: tuple[Segment, ...]
    offsets: tuple[int, ...]
    """Where each segment begins among the packed tokens, and their number at the end."""
    token_ids: torch.Tensor
    """[tokens], int64."""
    positions: torch.Tensor
    """[1, tokens], int64: place of each token in its sequence."""
    emitting: torch.Tensor
    """[emitting segments], int64: packed index of the tokens that ask for the next one."""
    slots: torch.Tensor
    """[segments], int64."""
    ends: torch.Tensor
    """[segments], int64: tokens in the cache once the step is done."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the micro-batch."""
        return self.offsets[-1]

    @property
    def is_decode(self) -> bool:
        """Whether every segment is a single token that follows others."""
        return self.num_tokens == len(self.segments) and all(each.start > 0 for each in self.segments)


def packed(segments: Sequence[Segment], device: torch.device | str = "cpu") -> Batch:
    """Return the batch of `segments`, in their order; of none, an empty batch."""
    ids: list[int] = []
    positions: list[int] = []
    offsets = [0]
    emitting: list[int] = []
    for each in segments:
        ids += each.token_ids
        positions += range(each.start, each.end)
        offsets.append(len(ids))
        if each.emits:
            emitting.append(len(ids) - 1)

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Batch(
        segments=tuple(segments),
        offsets=tuple(offsets),
        token_ids=tensor(ids),
        positions=tensor(positions)[None],
        emitting=tensor(emitting),
        slots=tensor([each.slot for each in segments]),
        ends=tensor([each.end for each in segments]),
    )
