"""DeepEP's kernels as an exchange: dispatch and combine on GPUs, over NVLink and RDMA (github.com/deepseek-ai/DeepEP).

Used where the package `deep_ep` is installed and the ranks are GPUs; never required. Written against the interface that
DeepEP documents for its normal kernels; not measured and not tested, for want of GPUs.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from moiety.runtime.dispatch.wire import Rows

if TYPE_CHECKING:
    from moiety.runtime.dispatch.exchange import StageShape

_NVLINK_BYTES = 1 << 30
_RDMA_BYTES = 1 << 30


def is_usable(stage: StageShape, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether DeepEP can exchange the tokens of a stage: BF16 on GPUs, every expert whole on one GPU."""
    fits = device.type == "cuda" and dtype == torch.bfloat16 and stage.expert_tp == 1
    return fits and find_spec("deep_ep") is not None


class DeepEpExchange:
    """Tokens through DeepEP's normal kernels, which send one row per node and pass it on inside, as ours do."""

    def __init__(self, stage: StageShape, process_group: Any) -> None:  # noqa: ANN401 - a group of torch.distributed
        """Make DeepEP's buffer over the stage's ranks; collective among them."""
        rdma = _RDMA_BYTES if stage.num_nodes > 1 else 0
        self._buffer: Any = import_module("deep_ep").Buffer(process_group, _NVLINK_BYTES, rdma)
        self._num_slots = stage.num_gpus * stage.slots_per_rank

    def begin(self, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor) -> DeepEpRound:
        """Begin to send; see `Exchange`."""
        per_rank, per_node, per_expert, reached, ready = self._buffer.get_dispatch_layout(
            slots, self._num_slots, async_finish=True
        )
        arrived = self._buffer.dispatch(
            hidden,
            topk_idx=slots,
            topk_weights=weights,
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_node,
            is_token_in_rank=reached,
            num_tokens_per_expert=per_expert,
            previous_event=ready,
            async_finish=True,
        )
        return DeepEpRound(self._buffer, arrived)


class DeepEpRound:
    """A dispatch and its combine; see `Round`."""

    def __init__(self, buffer: Any, arrived: Any) -> None:  # noqa: ANN401 - DeepEP's own objects
        self._buffer = buffer
        self._hidden, self._slots, self._weights, _, self._handle, self._event = arrived
        self._combined: Any = None

    def arrive(self) -> Rows:
        """Let the current stream wait for the rows; see `Round`.

        DeepEP numbers slots from the rank's first, and says -1 where there is none, as `Rows` does.
        """
        self._event.current_stream_wait()
        keys = torch.arange(self._hidden.shape[0], device=self._hidden.device)
        return Rows(self._hidden, keys, self._slots, self._weights)

    def give_back(self, partial: torch.Tensor) -> None:
        """Begin to return the rows, rounded to BF16; see `Round`."""
        self._combined = self._buffer.combine(partial.to(torch.bfloat16), self._handle, async_finish=True)

    def finish(self) -> torch.Tensor:
        """Let the current stream wait for the sums; see `Round`."""
        sums, _, event = self._combined
        event.current_stream_wait()
        return sums.float()
