"""Expert products by our Triton kernels: rows are gathered, gated, weighted and added without a copy in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moiety.runtime.experts.keys import KEY_BITS
from moiety.runtime.gates import known_gate
from moiety.runtime.kernels.expert_mlp import SortedPairs, gated_rows, weighted_outputs
from moiety.runtime.kernels.tiles import group_rows
from moiety.runtime.kernels.token_sums import row_sums

if TYPE_CHECKING:
    from moiety.runtime.dispatch.wire import Rows
    from moiety.runtime.experts.weights import ExpertWeights
    from moiety.runtime.telemetry import Recorder


def fused_outputs(rows: Rows, weights: ExpertWeights, recorder: Recorder, layer: int) -> torch.Tensor:
    """Return for each row the weighted sum of the outputs of its slots here, [rows, hidden] float32.

    As `partial_outputs` of `grouped.py`: a row's slots are added in the order of the router's choice, in FP32. An
    output is rounded to the format of the states once, after its weight; the gate's inputs are not rounded at all.
    Where all slots are here, nothing waits for the device to say how many are.
    """
    row, slot, scale, first = _all_pairs(rows) if rows.all_here else _pairs_here(rows)
    keys, order = torch.sort((slot << KEY_BITS) + rows.keys[row])
    gate = known_gate(weights.gate)
    assert gate is not None, "the back end takes such gates"
    pairs = SortedPairs(order, row, scale, group_rows(keys, weights.num_slots, KEY_BITS))
    middle = gated_rows(rows.hidden, weights.gate_up, pairs, gate, weights.gate_up_bias)
    recorder.mark("expert_gate_up", layer)
    outputs = weighted_outputs(middle, weights.down, pairs, weights.down_bias)
    sums = row_sums(outputs, first, rows.slots.shape[1])
    recorder.mark("expert_down", layer)
    return sums


def _pairs_here(rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return row, slot and weight of each pair that is here [pairs], and each row's first pair [rows + 1]."""
    held = rows.slots >= 0
    row, column = held.nonzero(as_tuple=True)
    first = torch.zeros(held.shape[0] + 1, dtype=torch.int64, device=held.device)
    torch.cumsum(held.sum(dim=1), 0, out=first[1:])
    return row, rows.slots[row, column].long(), rows.weights[row, column], first


def _all_pairs(rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the same where every pair is here."""
    count, width = rows.slots.shape
    row = torch.arange(count * width, device=rows.slots.device) // width
    first = torch.arange(count + 1, device=rows.slots.device) * width
    return row, rows.slots.reshape(-1).long(), rows.weights.reshape(-1), first
