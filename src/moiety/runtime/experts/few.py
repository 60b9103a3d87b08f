"""The experts' outputs of few rows on a CPU, in tensors whose shapes follow from those of the rows alone.

So a step of decoding can be noted and played again, whatever the router chooses: `arena/`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from moiety.runtime.arena.trace import called
from moiety.runtime.conversion import integers
from moiety.runtime.expansion import room_for
from moiety.runtime.experts.by_slot import multiply_by_slot, room_for_few
from moiety.runtime.experts.keys import KEY_BITS
from moiety.runtime.gates import gated

if TYPE_CHECKING:
    from moiety.runtime.block_scaled import Weight
    from moiety.runtime.dispatch.wire import Rows
    from moiety.runtime.expansion import Room
    from moiety.runtime.experts.weights import ExpertWeights
    from moiety.runtime.telemetry import Recorder


def outputs_of_few(rows: Rows, weights: ExpertWeights, recorder: Recorder, layer: int) -> torch.Tensor:
    """Return for each row the weighted sum of the outputs of its slots here, [rows, hidden] float32.

    As `partial_outputs` of `grouped.py`, and with its bits. Pairs of a row and no slot are sorted behind all others;
    what is computed of them is not looked at.
    """
    count, width = rows.slots.shape
    slots = torch.where(rows.slots >= 0, rows.slots, weights.num_slots).long()
    keys, order = _sorted(((slots << KEY_BITS) + rows.keys[:, None]).view(-1))
    bounds = torch.searchsorted(keys, torch.arange(weights.num_slots + 1, device=keys.device) << KEY_BITS)
    given = rows.hidden.index_select(0, order // width)
    outputs = _products(given, bounds, weights, recorder, layer, all_here=rows.all_here)
    outputs = outputs.float() * rows.weights.reshape(-1).index_select(0, order)[:, None]
    by_pair = torch.empty_like(outputs)
    called(_put_back, outputs, order, bounds, by_pair)
    each = by_pair.view(count, width, outputs.shape[1])
    total = each[:, 0]
    for column in range(1, width):
        total = total + each[:, column]
    recorder.mark("expert_down", layer)
    return total


def _sorted(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys in order, and where they stood; by `topk`, as `sort` asks for memory."""
    return torch.topk(keys, keys.shape[0], largest=False, sorted=True)


def _products(
    hidden: torch.Tensor,
    bounds: torch.Tensor,
    weights: ExpertWeights,
    recorder: Recorder,
    layer: int,
    *,
    all_here: bool,
) -> torch.Tensor:
    """Return the experts' outputs of rows sorted by slot, [rows, hidden]."""
    middle = gated(weights.gate, _multiplied(hidden, weights.gate_up, weights.gate_up_bias, bounds, all_here=all_here))
    recorder.mark("expert_gate_up", layer)
    return _multiplied(middle, weights.down, weights.down_bias, bounds, all_here=all_here)


def _multiplied(
    rows: torch.Tensor, weights: Weight, bias: torch.Tensor | None, bounds: torch.Tensor, *, all_here: bool
) -> torch.Tensor:
    out = rows.new_empty(rows.shape[0], weights.shape[2])
    room = room_for_few(rows.shape[0], weights, all_here=all_here)
    called(_multiply, rows, weights, bias, bounds, out, room, room_for(weights))
    return out


def _multiply(
    rows: torch.Tensor,
    weights: Weight,
    bias: torch.Tensor | None,
    bounds: torch.Tensor,
    out: torch.Tensor,
    room: torch.Tensor | None,
    expanded: Room | None,
) -> None:
    begins = integers(bounds)
    multiply_by_slot(rows, weights, begins, out, room, expanded)
    if bias is not None:
        for slot, (low, high) in enumerate(pairwise(begins)):
            out[low:high] += bias[slot]


def _put_back(outputs: torch.Tensor, order: torch.Tensor, bounds: torch.Tensor, by_pair: torch.Tensor) -> None:
    """Fill `by_pair` with the outputs in the order of the pairs, zeros where a pair has no slot here."""
    held = int(bounds[-1])
    if held < order.shape[0]:
        by_pair.zero_()
    by_pair.index_copy_(0, order[:held], outputs[:held])
