"""Slots: experts' weights taken out of a rank's stacks, sent, received, and put together anew."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from moiety.runtime.block_scaled import BlockScaled, in_memory, laid_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moiety.runtime.block_scaled import Weight
    from moiety.runtime.comm.bulk import BulkGroup
    from moiety.runtime.comm.pending import Pending
    from moiety.runtime.experts.weights import ExpertWeights

Place = tuple["ExpertWeights", int]
"""A stack of experts, and the slot of one there."""


def parts_of(weights: ExpertWeights, slot: int) -> list[torch.Tensor]:
    """Return the tensors of one expert, codes and scales if it is held so, each in one piece: views of the stacks."""
    return [stack[slot] for stack in _stacks(weights)]


def empty_like(weights: ExpertWeights, num_slots: int) -> ExpertWeights:
    """Return room for so many experts like those."""
    return _with_stacks(weights, [stack.new_empty(num_slots, *stack.shape[1:]) for stack in _stacks(weights)])


def joined(places: Sequence[Place]) -> ExpertWeights:
    """Return the experts that lie in these places, copied into one stack."""
    parts = zip(*(parts_of(weights, slot) for weights, slot in places), strict=True)
    return _with_stacks(places[0][0], [torch.stack(each) for each in parts])


def overwrite(weights: ExpertWeights, slot: int, source: Place) -> None:
    """Put an expert into a slot."""
    for mine, other in zip(parts_of(weights, slot), parts_of(*source), strict=True):
        mine.copy_(other)


def send(group: BulkGroup, rank: int, place: Place) -> list[Pending]:
    """Begin to send an expert to a member of `group`."""
    return [group.send(each.cpu(), rank) for each in parts_of(*place)]


class Arrival:
    """An expert on its way here from another rank, into a slot of some room."""

    def __init__(self, group: BulkGroup, rank: int, place: Place) -> None:
        self._targets = parts_of(*place)
        host = [each if each.device.type == "cpu" else torch.empty_like(each, device="cpu") for each in self._targets]
        self._pending = [group.receive(each, rank) for each in host]

    def wait(self) -> None:
        """Wait until the expert is in its slot."""
        for target, pending in zip(self._targets, self._pending, strict=True):
            arrived = pending.wait()
            if arrived.data_ptr() != target.data_ptr():
                target.copy_(arrived)


def _stacks(weights: ExpertWeights) -> list[torch.Tensor]:
    """Return the stacks as they lie in memory, [slots, ...], codes as bytes; what there is none of is left out."""
    turned = not weights.is_stored_so
    return [
        *(stack for each in (weights.gate_up, weights.down) for stack in _tensors(each, is_turned=turned)),
        *(each for each in (weights.gate_up_bias, weights.down_bias) if each is not None),
    ]


def _tensors(weight: Weight, *, is_turned: bool) -> tuple[torch.Tensor, ...]:
    return in_memory(weight.mT if is_turned and isinstance(weight, torch.Tensor) else weight)


def _with_stacks(like: ExpertWeights, stacks: Sequence[torch.Tensor]) -> ExpertWeights:
    left = iter(stacks)
    return replace(
        like,
        gate_up=_alike(like.gate_up, left, is_turned=not like.is_stored_so),
        down=_alike(like.down, left, is_turned=not like.is_stored_so),
        gate_up_bias=None if like.gate_up_bias is None else next(left),
        down_bias=None if like.down_bias is None else next(left),
    )


def _alike(like: Weight, stacks: Iterator[torch.Tensor], *, is_turned: bool) -> Weight:
    """Return the next stacks as weights like others."""
    if isinstance(like, BlockScaled):
        return laid_in(like, next(stacks), next(stacks))
    return next(stacks).mT if is_turned else next(stacks)
