"""The expert layer of a rank, in place of transformers' experts: routed tokens in, their experts' sum out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from moiety.runtime.arena.trace import called, is_noting, noted_most_tokens

if TYPE_CHECKING:
    from moiety.runtime.dispatch.serving import SlotChooser
    from moiety.runtime.dispatch.wire import Rows
    from moiety.runtime.experts.backends import Backend
    from moiety.runtime.experts.weights import ExpertWeights
    from moiety.runtime.telemetry import Recorder


@dataclass(frozen=True, slots=True, eq=False)
class HeldLayer:
    """One layer's experts as a rank holds them."""

    index: int
    """Of the layer in the model."""
    chooser: SlotChooser
    weights: ExpertWeights
    backend: Backend

    def outputs(self, rows: Rows, recorder: Recorder) -> torch.Tensor:
        """Return for each row the weighted sum of the outputs of its slots here, [rows, hidden] float32."""
        return self.backend.outputs(rows, self.weights, recorder, self.index)


class RoutedExperts(Protocol):
    """How the routed tokens of a layer meet its experts."""

    def most_pairs(self, num_tokens: int, top_k: int, most_tokens: int) -> int | None:
        """Return how many pairs of a row and a slot a noted step has room for; None: it cannot be noted.

        `num_tokens` are those of this rank's attention group, `most_tokens` those that any group has at most.
        """
        ...

    def __call__(
        self, hidden: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, layer: HeldLayer
    ) -> torch.Tensor:
        """Return what this rank adds to the layer's output, [tokens, hidden] float32.

        Summed over the ranks of the tensor-parallel group it is the whole: the weighted sum of the tokens' experts.
        """
        ...


class ExpertLayer(torch.nn.Module):
    """What stands where transformers' experts module stood: same arguments, same meaning."""

    def __init__(self, held: HeldLayer, routed: RoutedExperts, *, partial: bool) -> None:
        """`partial`: the block's output is summed over the tensor-parallel group afterwards, so FP32 is kept."""
        super().__init__()
        self.held = held
        self._routed, self._partial = routed, partial
        experts = held.chooser.table.held.shape[0]
        self.counts = torch.zeros(experts, dtype=torch.int64, device=held.weights.gate_up.device)
        """[experts]: how often the router chose each for this attention group's tokens since the last reset."""
        self._one = torch.ones_like(self.counts[:1])

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return [tokens, hidden] from states [tokens, hidden], experts and weights [tokens, k]."""
        called(self._count, top_k_index)
        given = top_k_weights.float()
        if is_noting() and not self._can_be_noted(top_k_index):
            out = torch.empty_like(hidden_states, dtype=torch.float32)
            called(self._fill, out, hidden_states, top_k_index, given)
        else:
            out = self._routed(hidden_states, top_k_index, given, self.held)
        return out if self._partial else out.to(hidden_states.dtype)

    def is_fixed(self, num_tokens: int, top_k: int, most_tokens: int) -> bool:
        """Return whether a step can be noted tensor by tensor: their shapes follow from these numbers.

        `num_tokens` are those of this rank's attention group, `most_tokens` those that any group has at most.
        """
        num_pairs = self._routed.most_pairs(num_tokens, top_k, most_tokens)
        return num_pairs is not None and num_pairs <= self.held.backend.most_fixed

    def _can_be_noted(self, chosen: torch.Tensor) -> bool:
        tokens, top_k = chosen.shape
        return self.is_fixed(tokens, top_k, noted_most_tokens())

    def _fill(self, out: torch.Tensor, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> None:
        out.copy_(self._routed(hidden, chosen, weights, self.held))

    def _count(self, chosen: torch.Tensor) -> None:
        self.counts.scatter_add_(0, chosen.reshape(-1), self._one.expand(chosen.numel()))
