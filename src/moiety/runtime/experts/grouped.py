"""Grouped expert products on a rank: the rows of each slot against that slot's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.autograd import Function
from torch.nn.functional import grouped_mm

from moiety.cost.few_rows import are_few
from moiety.cost.workspaces import MOST_PAIRS
from moiety.runtime.block_scaled import BlockScaled
from moiety.runtime.conversion import integers
from moiety.runtime.dispatch.reduction import segment_sum
from moiety.runtime.experts.by_slot import multiply_by_slot
from moiety.runtime.experts.few import outputs_of_few
from moiety.runtime.experts.keys import KEY_BITS
from moiety.runtime.gates import gated

if TYPE_CHECKING:
    from moiety.runtime.block_scaled import Weight
    from moiety.runtime.dispatch.wire import Rows
    from moiety.runtime.experts.weights import ExpertWeights
    from moiety.runtime.telemetry import Recorder

Multiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Rows [rows, inner] sorted by slot, weights [slots, inner, outer] and the slots' rows [slots] -> [rows, outer]; not in
FP8, of which a slot at a time is expanded and multiplied."""
_LINE_BYTES = 16
"""That torch's grouped product wants the rows of its operands to be multiples of."""


def suits_grouped_mm(weights: ExpertWeights) -> bool:
    """Return whether torch's grouped product takes these weights: all rows lie in lines of 16 bytes."""
    line = _LINE_BYTES // weights.down.dtype.itemsize
    return not any(size % line for size in (*weights.gate_up.shape[1:], *weights.down.shape[1:]))


def grouped(rows: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the product of each slot's rows with its weights, in one call."""
    if rows.shape[0] == 0:  # grouped_mm has no backward pass for that
        return rows @ weights[0]
    return grouped_mm(rows, weights, offs=counts.cumsum(0).to(torch.int32))


def one_by_one(rows: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the same by a product for each slot, of any width."""
    return torch.cat([part @ weights[slot] for slot, part in enumerate(torch.split(rows, integers(counts)))])


def partial_outputs(
    rows: Rows, weights: ExpertWeights, recorder: Recorder, layer: int, multiply: Multiply = grouped
) -> torch.Tensor:
    """Return for each row the weighted sum of the outputs of its slots here, [rows, hidden] float32.

    Rows of a slot are computed in the order of their keys, whichever way they came, and a row's slots are added in the
    order of the router's choice: the bits of the result depend on neither the exchange nor the arrival.
    """
    is_few = rows.hidden.device.type == "cpu" and rows.slots.numel() <= MOST_PAIRS
    if is_few and multiply in {grouped, one_by_one} and not torch.is_grad_enabled():
        return outputs_of_few(rows, weights, recorder, layer)
    row, column = (rows.slots >= 0).nonzero(as_tuple=True)
    slot = rows.slots[row, column]
    order = torch.argsort((slot << KEY_BITS) + rows.keys[row])
    counts = torch.bincount(slot, minlength=weights.num_slots)
    taken = row[order]
    outputs = _products(rows.hidden.index_select(0, taken), slot[order], counts, weights, recorder, layer, multiply)
    outputs = outputs.float() * rows.weights[taken, column[order]][:, None]
    if torch.is_grad_enabled():
        sums = cast("torch.Tensor", cast("Any", _RowSums).apply(outputs, order, row, taken, rows))
    else:
        sums = _row_sums(outputs, order, row, rows)
    recorder.mark("expert_down", layer)
    return sums


class _RowSums(Function):
    """`_row_sums` of outputs whose gradients are wanted; all that is kept is which row (`taken`) an output is of."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        outputs: torch.Tensor,
        order: torch.Tensor,
        row: torch.Tensor,
        taken: torch.Tensor,
        rows: Rows,
    ) -> torch.Tensor:
        ctx.save_for_backward(taken)
        return _row_sums(outputs, order, row, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:  # noqa: ANN401
        (taken,) = ctx.saved_tensors
        return gradients[0].index_select(0, taken), None, None, None, None


def _row_sums(outputs: torch.Tensor, order: torch.Tensor, row: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Return the sums of the outputs of each row, added in the order before `order`, zeros for rows without any."""
    outputs = torch.empty_like(outputs).index_copy_(0, order, outputs)
    count, width = rows.slots.shape
    if outputs.shape[0] == count * width:  # every row has as many
        by_row = outputs.view(count, width, rows.hidden.shape[1])
        total = by_row[:, 0]
        for each in range(1, width):
            total = total + by_row[:, each]
        return total
    sums, which = segment_sum(outputs, row)
    if which.shape[0] == count:
        return sums
    return outputs.new_zeros(rows.hidden.shape).index_copy_(0, which, sums)


def _products(
    hidden: torch.Tensor,
    slot: torch.Tensor,
    counts: torch.Tensor,
    weights: ExpertWeights,
    recorder: Recorder,
    layer: int,
    multiply: Multiply,
) -> torch.Tensor:
    """Return the experts' outputs of rows sorted by slot, [rows, hidden]."""
    is_few = hidden.device.type == "cpu" and are_few(hidden.shape[0], weights.num_slots)
    if is_few and not torch.is_grad_enabled():
        multiply = _by_slot
    middle = _multiplied(hidden, weights.gate_up, counts, multiply)
    if weights.gate_up_bias is not None:
        middle += weights.gate_up_bias[slot]
    middle = gated(weights.gate, middle)
    recorder.mark("expert_gate_up", layer)
    out = _multiplied(middle, weights.down, counts, multiply)
    if weights.down_bias is not None:
        out += weights.down_bias[slot]
    return out


def _multiplied(rows: torch.Tensor, weights: Weight, counts: torch.Tensor, multiply: Multiply) -> torch.Tensor:
    return _by_slot(rows, weights, counts) if isinstance(weights, BlockScaled) else multiply(rows, weights, counts)


def _by_slot(rows: torch.Tensor, weights: Weight, counts: torch.Tensor) -> torch.Tensor:
    """Return the same slot by slot, for few rows of a slot on a CPU, and for weights in FP8."""
    out = rows.new_empty(rows.shape[0], weights.shape[2])
    multiply_by_slot(rows, weights, [0, *integers(counts.cumsum(0))], out)
    return out
