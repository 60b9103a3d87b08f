"""Modules that hold a tensor-parallel rank's part of a layer and reduce over its group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import embedding, linear

from moiety.runtime.comm.adjoint import all_gather, all_reduce
from moiety.runtime.expansion import whole

if TYPE_CHECKING:
    from moiety.runtime.block_scaled import Weight
    from moiety.runtime.comm.group import Group
    from moiety.runtime.telemetry import Recorder


class VocabularyEmbedding(torch.nn.Module):
    """Token embedding of which the rank holds the rows from `first_row` on; the group's sum is the embedding."""

    def __init__(self, weight: torch.nn.Parameter, first_row: int, group: Group, recorder: Recorder) -> None:
        super().__init__()
        self.weight = weight
        self._first_row, self._group, self._recorder = first_row, group, recorder

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return [..., hidden] for int64 token ids [...]."""
        rows = self._rows(token_ids)
        self._recorder.mark("embedding")
        if self._group.size > 1:
            rows = all_reduce(rows, self._group)
            self._recorder.mark("embedding_all_reduce")
        return rows

    def _rows(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the rows that this rank holds, zeros for the others."""
        if self._group.size == 1:
            return embedding(token_ids, self.weight)
        if self.weight.shape[0] == 0:
            return self.weight.sum(0).repeat(*token_ids.shape, 1)  # zeros, which take part in a backward pass
        local = token_ids - self._first_row
        here = (local >= 0) & (local < self.weight.shape[0])
        return embedding(torch.where(here, local, 0), self.weight).masked_fill(~here[..., None], 0)


class VocabularyHead(torch.nn.Module):
    """Output head of which the rank computes a part of the vocabulary; gathered, the logits are whole."""

    def __init__(self, weight: torch.nn.Parameter, vocab_size: int, group: Group, recorder: Recorder) -> None:
        super().__init__()
        self.weight = weight
        self._vocab_size, self._group, self._recorder = vocab_size, group, recorder

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits [rows, vocabulary] of states [rows, hidden]."""
        logits = linear(hidden, self.weight)
        self._recorder.mark("lm_head")
        if self._group.size == 1:
            return logits
        widest = -(-self._vocab_size // self._group.size)
        padded = logits.new_zeros(hidden.shape[0], widest)
        padded[:, : logits.shape[1]] = logits
        gathered = all_gather(padded, self._group)  # [group, rows, widest]
        logits = gathered.transpose(0, 1).reshape(hidden.shape[0], -1)[:, : self._vocab_size]
        self._recorder.mark("logits_all_gather")
        return logits


class RowLinear(torch.nn.Module):
    """A product whose inner dimension is divided over the group: the partial products are summed."""

    def __init__(
        self,
        weight: Weight,
        bias: torch.nn.Parameter | None,
        group: Group | None,
        *,
        recorder: Recorder,
        ops: tuple[str, str],
        layer: int,
    ) -> None:
        """Without a `group` the sum is left to what follows, and only the group's first rank has the bias.

        `ops` are the graph's names of the product and of the reduction.
        """
        super().__init__()
        self.weight, self.bias = weight, bias
        self._group, self._recorder, self._ops, self._layer = group, recorder, ops, layer

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [..., out] of this rank's part of the input, [..., in]."""
        if self._group is None:
            out = linear(rows, whole(self.weight), self.bias)
            self._recorder.mark(self._ops[0], self._layer)
            return out
        out = linear(rows, whole(self.weight))
        self._recorder.mark(self._ops[0], self._layer)
        out = all_reduce(out, self._group)
        out = out if self.bias is None else out + self.bias
        self._recorder.mark(self._ops[1], self._layer)
        return out


class DividedNorm(torch.nn.Module):
    """RMS norm over all heads together, of which the rank holds some (OLMoE)."""

    def __init__(self, weight: torch.nn.Parameter, eps: float, whole_size: int, group: Group) -> None:
        """`whole_size` counts the elements of all heads; ranks that hold the same head count it as often."""
        super().__init__()
        self.weight = weight
        self._eps, self._group = eps, group
        self._counted = weight.shape[0] * group.size
        assert self._counted % whole_size == 0, "every head is held equally often"

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [..., width] normalised by the root mean square over all heads."""
        whole = rows.float()
        squares = all_reduce(whole.pow(2).sum(-1, keepdim=True), self._group)
        whole = whole * torch.rsqrt(squares / self._counted + self._eps)
        return self.weight * whole.to(rows.dtype)


class ReducedBlock(torch.nn.Module):
    """A mixture-of-experts block whose output, of routed and shared experts together, is summed over the group once."""

    def __init__(self, inner: torch.nn.Module, group: Group, *, recorder: Recorder, layer: int) -> None:
        super().__init__()
        self.inner = inner
        self._group, self._recorder, self._layer = group, recorder, layer

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return what transformers' block returns, its first output summed over the group in FP32."""
        out: torch.Tensor | tuple[torch.Tensor, ...] = self.inner(hidden_states)
        first = out[0] if isinstance(out, tuple) else out
        summed = all_reduce(first.float(), self._group).to(hidden_states.dtype)
        self._recorder.mark("ffn_all_reduce", self._layer)
        return (summed, *out[1:]) if isinstance(out, tuple) else summed
