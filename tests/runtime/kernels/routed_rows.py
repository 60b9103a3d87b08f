"""Rows that a router has sent to slots, their experts' weights, and what comes of them in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moiety.runtime.dispatch.wire import NO_SLOT, Rows
from moiety.runtime.experts.weights import ExpertWeights

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
            middle = gated(self.rows.hidden[row].double() @ self.weights.gate_up[slot].double())
            down = self.weights.down[slot].double()
            outputs = middle @ down
            sums.index_add_(0, row, weight * outputs)
            doubt.index_add_(0, row, weight * (middle.abs() @ down.abs() + outputs.abs()))
        return sums, doubt


def gated(middle: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, the gates before the ups."""
    gate, up = middle.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


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
) -> Case:
    """Return rows that name `width` slots each, or by `kind` fewer, and experts of `sizes` (hidden, width)."""
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

    def experts(out: int, of: int) -> torch.Tensor:
        stacked = torch.randn(num_slots, out, of, generator=generator).to(dtype) / of**0.5
        return stacked.transpose(1, 2) if is_transposed else stacked.transpose(1, 2).contiguous()

    return Case(rows, ExpertWeights(experts(2 * inner, hidden), experts(hidden, inner), None, None, gated))


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative step that results may be off by: the format's, and in float32 what adding in it costs."""
    return 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
