"""Batch: the tokens of one micro-batch of an attention group, packed one after the other without padding."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from moiety.cost.workspaces import tokens_with_room
from moiety.runtime.comm.reduction import bytes_of

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
class BatchTensors:
    """What the model reads of a batch."""

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


class Batch:
    """Segments of different sequences, packed; its tensors are made when they are first asked for."""

    def __init__(
        self,
        segments: Sequence[Segment],
        device: torch.device | str = "cpu",
        part: int = 0,
        busiest: int | None = None,
    ) -> None:
        """`part`: place among the micro-batches of its step. `busiest`: most tokens that an attention group has in it.

        Without `busiest` every group has as many as this one.
        """
        self.segments, self.part, self._device = tuple(segments), part, device
        self.offsets = (0, *accumulate(len(each.token_ids) for each in segments))
        """Where each segment begins among the packed tokens, and their number at the end."""
        self.most_tokens = tokens_with_room(self.num_tokens if busiest is None else busiest)
        """Of any attention group that the micro-batch has room for where it is noted."""
        self.num_emitting = sum(each.emits for each in segments)
        """Segments that ask for the next token."""
        self.is_decode = self.num_tokens == len(segments) and all(each.start > 0 for each in segments)
        """Whether every segment is a single token that follows others."""
        self.most_cached: int | None = None
        """Tokens that attention looks at in every sequence's row of the cache, masked from its end on; None: as many as
        the longest of the batch has, which differs from step to step."""
        self._tensors: BatchTensors | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the micro-batch."""
        return self.offsets[-1]

    @property
    def tensors(self) -> BatchTensors:
        """What the model reads."""
        if self._tensors is None:
            numbers = self.numbers()
            ids, positions, *others = (torch.tensor(each, dtype=torch.int64, device=self._device) for each in numbers)
            self._tensors = BatchTensors(ids, positions[None], *others)
        return self._tensors

    def read_from(self, tensors: BatchTensors) -> None:
        """Have the model read `tensors`, to which the batch's numbers are written by whoever calls this."""
        self._tensors = tensors

    def lie_in(self, tensors: BatchTensors) -> None:
        """Have the batch's tensors in the memory of those of another one of the same shape, on the CPU."""
        self._tensors = tensors
        rooms = (tensors.token_ids, tensors.positions, tensors.emitting, tensors.slots, tensors.ends)
        for room, numbers in zip(rooms, self.numbers(), strict=True):
            struct.pack_into(f"{room.numel()}q", bytes_of(room), 0, *numbers)

    def numbers(self) -> tuple[list[int], ...]:
        """Return what the tensors hold, in the order of `BatchTensors`."""
        ids = [each for segment in self.segments for each in segment.token_ids]
        positions = [each for segment in self.segments for each in range(segment.start, segment.end)]
        emitting = [end - 1 for segment, end in zip(self.segments, self.offsets[1:], strict=True) if segment.emits]
        return ids, positions, emitting, [each.slot for each in self.segments], [each.end for each in self.segments]


def packed(
    segments: Sequence[Segment], device: torch.device | str = "cpu", part: int = 0, busiest: int | None = None
) -> Batch:
    """Return the batch of `segments`, in their order; of none, an empty batch; see `Batch`."""
    return Batch(segments, device, part, busiest)
