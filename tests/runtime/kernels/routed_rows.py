"""Rows that a router has sent to slots, their experts' weights, and what comes of them in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moiety.runtime.block_scaled import BlockScaled, Weight, cut, quantised, stacked
from moiety.runtime.dispatch.wire import NO_SLOT, Rows
from moiety.runtime.expansion import whole
from moiety.runtime.experts.weights import ExpertWeights
from moiety.runtime.gates import Gate

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """A rank's rows and experts."""

    rows: Rows
    weights: ExpertWeights

    def reference(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows' sums [rows, hidden] float64, and how far a format of relative step 1 may be off them.

        The products between are rounded once, and the outputs once.
        """
        sums = torch.zeros(self.rows.hidden.shape, dtype=torch.float64)
        doubt = torch.zeros_like(sums)
        for slot in range(self.weights.num_slots):
            row, column = (self.rows.slots == slot).nonzero(as_tuple=True)
            weight = self.rows.weights[row, column].double()[:, None]
            gate_up, down = (whole(each[slot]).double() for each in (self.weights.gate_up, self.weights.down))
            middle = self.rows.hidden[row].double() @ gate_up
            if self.weights.gate_up_bias is not None:
                middle += self.weights.gate_up_bias[slot].double()
            middle = self.weights.gate(middle)
            outputs = middle @ down
            if self.weights.down_bias is not None:
                outputs += self.weights.down_bias[slot].double()
            sums.index_add_(0, row, weight * outputs)
            doubt.index_add_(0, row, weight * (middle.abs() @ down.abs() + outputs.abs()))
        return sums, doubt


def case_of(
    *,
    num_rows: int,
    num_slots: int,
    width: int,
    sizes: tuple[int, int] = (48, 24),
    dtype: torch.dtype = torch.float32,
    kind: str = "some",
    is_transposed: bool = True,
    seed: int = 0,
    gate: Gate = Gate.SILU,
    is_biased: bool = False,
    fp8_from: int | None = None,
) -> Case:
    """Return rows that name `width` slots each, or by `kind` fewer, and experts of `sizes` (hidden, width).

    `fp8_from`: they are held in FP8, cut from larger ones whose first rows and columns, so many, another rank has.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = sizes
    slots = torch.rand(num_rows, num_slots, generator=generator).topk(width, dim=1).indices
    if kind == "some":
        slots[torch.rand(slots.shape, generator=generator) < 0.5] = NO_SLOT
    elif kind == "one slot":
        slots[:, 0], slots[:, 1:] = num_slots - 1, NO_SLOT
    elif kind == "nowhere":
        slots[:] = NO_SLOT
    padded = torch.randn(num_rows, hidden + 3, generator=generator).to(
        dtype
    )  # rows on the wire have a gap between them
    rows = Rows(
        hidden=padded[:, :hidden],
        keys=torch.randperm(num_rows, generator=generator) + (seed << 32),
        slots=slots,
        weights=torch.rand(slots.shape, generator=generator),
    )

    def experts(out: int, of: int) -> Weight:
        if fp8_from is not None:
            values = torch.randn(num_slots, out + fp8_from, of + fp8_from, generator=generator) / of**0.5
            return held_in_fp8(values, fp8_from, dtype, is_transposed=is_transposed)
        stored = torch.randn(num_slots, out, of, generator=generator).to(dtype) / of**0.5
        return stored.transpose(1, 2) if is_transposed else stored.transpose(1, 2).contiguous()

    def biases(size: int) -> torch.Tensor | None:
        return torch.randn(num_slots, size, generator=generator).to(dtype) if is_biased else None

    gate_up, down = experts(2 * inner, hidden), experts(hidden, inner)
    return Case(rows, ExpertWeights(gate_up, down, biases(2 * inner), biases(hidden), gate))


def held_in_fp8(values: torch.Tensor, first: int, dtype: torch.dtype, *, is_transposed: bool) -> BlockScaled:
    """Return weights [slots, in, out] in FP8 of values [slots, out, in], without their first rows and columns."""
    stored = values if is_transposed else values.mT
    parts = [
        cut(quantised(each, dtype), *(range(first, size) for size in each.shape))  # as they are quantised when read
        for each in stored
    ]
    return stacked(parts).mT if is_transposed else stacked(parts)


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative step that results may be off by: the format's, and in float32 what adding in it costs."""
    return 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps


def wrong_numbers(
    device: torch.device,
    sizes: tuple[int, int],
    dtype: torch.dtype,
    fp8_from: int,
    gate: Gate = Gate.SILU,
    *,
    num_slots: int = 3,
    is_transposed: bool = True,
) -> list[str]:
    """Return which weights held in FP8 the kernels take for other numbers than the CPU's expansion of them.

    Every row is zeros but for a single one, so that each product is a weight's number, in whatever order it is added
    up: every number of the down projection is seen, and of gates and ups what becomes of each pair of numbers.
    """
    from moiety.runtime.kernels.expert_mlp import SortedPairs, gated_rows, weighted_outputs  # noqa: PLC0415 - Triton
    from moiety.runtime.kernels.tiles import group_rows  # noqa: PLC0415 - likewise

    hidden, width = sizes
    generator = torch.Generator().manual_seed(sum(sizes))

    def pairs_of(size: int) -> SortedPairs:
        slots = torch.arange(num_slots, device=device).repeat_interleave(size)
        each = torch.arange(num_slots * size, device=device)
        return SortedPairs(each, each % size, torch.ones(len(each), device=device), group_rows(slots, num_slots, 0))

    def held(out: int, of: int) -> BlockScaled:
        values = torch.randn(num_slots, out + fp8_from, of + fp8_from, generator=generator)
        return held_in_fp8(values, fp8_from, dtype, is_transposed=is_transposed)

    gate_up, down = held(2 * width, hidden), held(hidden, width)
    numbers = [torch.stack([whole(each[slot]) for slot in range(num_slots)]).to(device) for each in (gate_up, down)]
    single = torch.eye(width, dtype=dtype, device=device).repeat(num_slots, 1)
    found = weighted_outputs(single, down.to(device), pairs_of(width)).view(num_slots, width, hidden)
    wrong = [] if torch.equal(found, numbers[1]) else ["numbers of the down projection"]
    rows = torch.eye(hidden, dtype=dtype, device=device)
    taken, expected = (gated_rows(rows, each, pairs_of(hidden), gate) for each in (gate_up.to(device), numbers[0]))
    return wrong if torch.equal(taken, expected) else [*wrong, "gates and ups"]
