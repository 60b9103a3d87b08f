"""Grouped expert products on a rank: the rows of each slot against that slot's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import grouped_mm

from moiety.runtime.dispatch.reduction import segment_sum

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.runtime.dispatch.wire import Rows
    from moiety.runtime.telemetry import Recorder


@dataclass(frozen=True, slots=True, eq=False)
class ExpertWeights:
    """The stacked weights of a rank's slots in one layer, and the gate between the two products."""

    gate_up: torch.Tensor
    """[slots, hidden, 2 x width] as the product takes it (a view where the checkpoint stores it transposed)."""
    down: torch.Tensor
    """[slots, width, hidden]."""
    gate_up_bias: torch.Tensor | None
    """[slots, 2 x width]."""
    down_bias: torch.Tensor | None
    """[slots, hidden]; None too where another rank of the expert adds it."""
    gate: Callable[[torch.Tensor], torch.Tensor]
    """[rows, 2 x width] -> [rows, width]."""

    @property
    def num_slots(self) -> int:
        """Physical slots of the rank."""
        return self.gate_up.shape[0]

    @property
    def size_bytes(self) -> int:
        """Bytes of the rank's expert weights in this layer."""
        held = (self.gate_up, self.down, self.gate_up_bias, self.down_bias)
        return sum(each.nbytes for each in held if each is not None)


def partial_outputs(rows: Rows, weights: ExpertWeights, recorder: Recorder, layer: int) -> torch.Tensor:
    """Return for each row the weighted sum of the outputs of its slots here, [rows, hidden] float32.

    Rows of a slot are computed in the order of their keys, whichever way they came, and a row's slots are added in the
    order of the router's choice: the bits of the result depend on neither the exchange nor the arrival.
    """
    row, column = (rows.slots >= 0).nonzero(as_tuple=True)
    slot = rows.slots[row, column]
    order = torch.argsort(rows.keys[row], stable=True)
    order = order[torch.argsort(slot[order], stable=True)]
    counts = torch.bincount(slot, minlength=weights.num_slots)
    outputs = _products(rows.hidden[row[order]], slot[order], counts, weights, recorder, layer)
    outputs = outputs.float() * rows.weights[row, column][order][:, None]
    back = torch.empty_like(outputs)
    back[order] = outputs
    sums, which = segment_sum(back, row)
    if which.shape[0] < rows.hidden.shape[0]:
        out = outputs.new_zeros(rows.hidden.shape)
        out[which] = sums
        sums = out
    recorder.mark("expert_down", layer)
    return sums


def _products(
    hidden: torch.Tensor,
    slot: torch.Tensor,
    counts: torch.Tensor,
    weights: ExpertWeights,
    recorder: Recorder,
    layer: int,
) -> torch.Tensor:
    """Return the experts' outputs of rows sorted by slot, [rows, hidden]."""
    ends = counts.cumsum(0).to(torch.int32)
    middle = grouped_mm(hidden, weights.gate_up, offs=ends)
    if weights.gate_up_bias is not None:
        middle += weights.gate_up_bias[slot]
    middle = weights.gate(middle)
    recorder.mark("expert_gate_up", layer)
    out = grouped_mm(middle, weights.down, offs=ends)
    if weights.down_bias is not None:
        out += weights.down_bias[slot]
    return out
