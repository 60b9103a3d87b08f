"""DeepEP: dispatch and combine by the library's kernels, over NVLink inside a node and RDMA between nodes.

Written after the library's `Buffer` (github.com/deepseek-ai/DeepEP 1.2.1, its normal kernels) and tested with it inside
a node, not between nodes. Its sums are rounded to BF16 per rank and added in an order of its own, so their bits are not
those of the other exchanges, and it does not say how many bytes crossed which link.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from moiety.errors import InputError
from moiety.runtime.dispatch.wire import Rows

if TYPE_CHECKING:
    from moiety.runtime.dispatch.exchange import StageShape

MODULE = "deep_ep"
NUM_RANKS = (2, 4, 8, 16, 24, 32, 64, 128, 144, 160)
"""Ranks of a stage that the library has settings for (`Buffer.get_dispatch_config`)."""
NODE_RANKS = 8
"""Ranks of a node in the library: up to so many it uses NVLink alone, and a build for one node knows no RDMA."""

_ELSE = "leave the option out: NCCL carries rows between GPUs"


def check_installed() -> None:
    """Raise InputError where the library is not there."""
    if find_spec(MODULE) is None:
        rule = "needs the package deep_ep, which is not installed"
        raise InputError(rule, field="--transport", value=MODULE, remedy=f"github.com/deepseek-ai/DeepEP, or {_ELSE}")


def check_deep_ep(stage: StageShape, dtype: torch.dtype, device: torch.device) -> None:
    """Raise InputError where the library is not there, or does not do what the plan asks."""
    check_installed()
    reason = None
    if device.type != "cuda":
        reason = "is for GPUs"
    elif dtype != torch.bfloat16:
        reason = f"sends BF16, and this plan's rows are {dtype}"
    elif stage.expert_tp > 1:
        reason = f"knows no expert tensor parallelism, and this plan divides experts by {stage.expert_tp}"
    elif stage.num_gpus not in NUM_RANKS:
        reason = f"has no settings for {stage.num_gpus} ranks, only for {', '.join(map(str, NUM_RANKS))}"
    if reason is not None:
        raise InputError(reason, field="--transport", value=MODULE, remedy=_ELSE)


class DeepEpExchange:
    """One row per (token, GPU) inside a node, per (token, node) between nodes; see `Exchange`."""

    def __init__(self, stage: StageShape, process_group: object) -> None:
        """Exchange over `process_group`, one of PyTorch's of the stage's ranks."""
        self._stage, self._process_group = stage, process_group
        self._buffers: dict[int, Any] = {}  # the library has no types

    def _buffer(self, hidden_size: int) -> Any:  # noqa: ANN401  # as above
        """Return the library's buffers for rows of that size; made once."""
        if hidden_size not in self._buffers:
            maker, size = import_module(MODULE).Buffer, self._stage.num_gpus
            row_bytes = hidden_size * torch.bfloat16.itemsize
            settings = maker.get_dispatch_config(size), maker.get_combine_config(size)
            self._buffers[hidden_size] = maker(
                self._process_group,
                max(each.get_nvl_buffer_size_hint(row_bytes, size) for each in settings),
                max(each.get_rdma_buffer_size_hint(row_bytes, size) for each in settings) if size > NODE_RANKS else 0,
            )
        return self._buffers[hidden_size]

    def begin(self, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> DeepEpRound:
        """Begin to send; see `Exchange`."""
        buffer = self._buffer(hidden.shape[1])
        per_rank, per_node, per_slot, is_in_rank, laid_out = buffer.get_dispatch_layout(
            slots, self._stage.num_gpus * self._stage.slots_per_rank, async_finish=True
        )
        states, named, given, _, handle, arrived = buffer.dispatch(
            hidden.contiguous(),
            topk_idx=slots,
            topk_weights=weights.float(),
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_node,
            is_token_in_rank=is_in_rank,
            num_tokens_per_expert=per_slot,
            previous_event=laid_out,
            async_finish=True,
        )
        keys = torch.arange(states.shape[0], device=states.device)  # rows come by rank, then by token
        return DeepEpRound(buffer, Rows(states, keys, named, given), handle, arrived)


class DeepEpRound:
    """A dispatch and its combine; see `Round`."""

    def __init__(self, buffer: Any, rows: Rows, handle: object, under_way: Any) -> None:  # noqa: ANN401  # no types
        self._buffer, self._rows, self._handle, self._under_way = buffer, rows, handle, under_way
        self._sums: torch.Tensor | None = None

    def arrive(self) -> Rows:
        """Let the current stream wait for the rows; see `Round`."""
        self._under_way.current_stream_wait()
        return self._rows

    def give_back(self, partial: torch.Tensor) -> None:
        """Begin to return them; see `Round`."""
        before = self._buffer.capture()
        self._sums, _, self._under_way = self._buffer.combine(
            partial.to(torch.bfloat16), self._handle, previous_event=before, async_finish=True
        )

    def finish(self) -> torch.Tensor:
        """Let the current stream wait for the sums; see `Round`."""
        assert self._sums is not None, "rows are given back before they are finished"
        self._under_way.current_stream_wait()
        return self._sums.float()
