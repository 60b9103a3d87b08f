"""Experts are taken out of stacks, and put into others, as they are held: no scale and no code is made anew."""

from __future__ import annotations

import pytest
import torch

from moiety.runtime.block_scaled import BlockScaled, quantised, stacked
from moiety.runtime.elastic.slots import empty_like, joined, overwrite, parts_of
from moiety.runtime.expansion import whole
from moiety.runtime.experts.weights import ExpertWeights
from tests.runtime.test_block_scaled import pairs_of

HIDDEN, WIDTH = 160, 96


def experts(seed: int, *, is_stored_so: bool, held: str = "fp8") -> ExpertWeights:
    """Return two random experts with a bias, in one of the two ways to lay them out."""
    generator = torch.Generator().manual_seed(seed)

    def stack(rows: int, columns: int) -> torch.Tensor | BlockScaled:
        each = [torch.randn(rows, columns, generator=generator) for _ in range(2)]
        if held == "mxfp4":
            return stacked([pairs_of(one.mT).mT for one in each])
        return stacked([quantised(one, torch.float32) for one in each]) if held == "fp8" else torch.stack(each)

    gate_up = stack(HIDDEN, 2 * WIDTH) if is_stored_so else stack(2 * WIDTH, HIDDEN).mT
    down = stack(WIDTH, HIDDEN) if is_stored_so else stack(HIDDEN, WIDTH).mT
    bias = torch.randn(2, 2 * WIDTH, generator=generator)
    return ExpertWeights(gate_up, down, bias, None, torch.abs, is_stored_so)


def numbers(weights: ExpertWeights, slot: int) -> list[torch.Tensor]:
    assert weights.gate_up_bias is not None
    return [whole(weights.gate_up[slot]), whole(weights.down[slot]), weights.gate_up_bias[slot]]


@pytest.mark.parametrize("is_stored_so", [True, False])
@pytest.mark.parametrize("held", ["fp8", "mxfp4", "as products take them"])
def test_experts_are_the_same_wherever_they_are_put(held: str, *, is_stored_so: bool) -> None:
    some, others = (experts(seed, is_stored_so=is_stored_so, held=held) for seed in (1, 2))
    stack = joined([(others, 1), (some, 0), (others, 0)])
    assert (stack.num_slots, stack.is_in_codes, stack.is_stored_so) == (3, held in {"fp8", "mxfp4"}, is_stored_so)
    room = empty_like(some, 1)
    overwrite(room, 0, (others, 1))
    for found, (source, slot) in ((numbers(stack, 0), (others, 1)), (numbers(room, 0), (others, 1))):
        assert all(map(torch.equal, found, numbers(source, slot)))
    assert all(map(torch.equal, numbers(stack, 1), numbers(some, 0)))
    assert all(each.is_contiguous() for each in parts_of(stack, 1)), "they are sent as they lie"
    sent = sum(each.nbytes for each in parts_of(stack, 1))
    assert sent * 3 == stack.size_bytes, "nothing is sent but what is held"
