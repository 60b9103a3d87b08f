"""The loss of a batch on one rank, through transformers' layers cut to the rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn.functional import cross_entropy
from torch.utils import checkpoint

if TYPE_CHECKING:
    from collections.abc import Collection

    from moiety.runtime.model.rank_model import RankModel


class TrainedModel(torch.nn.Module):
    """A rank's model from token ids to its part of the loss."""

    def __init__(self, model: RankModel) -> None:
        """`model` is one that gradients come back through, all of its layers on this stage."""
        super().__init__()
        assert model.embedding is not None, "one stage holds the whole model"
        self._rank_model = model
        self.layers = torch.nn.ModuleList(model.layers.values())
        self.embedding, self.norm, self.head = model.embedding, model.norm, model.head

    def forward(
        self, token_ids: torch.Tensor, *, num_rows: int, checkpointed: Collection[int] = frozenset()
    ) -> torch.Tensor:
        """Return this rank's part of the mean next-token cross-entropy, a float32 scalar.

        `token_ids` [rows, tokens] are this attention group's rows of `num_rows` over all groups. The ranks of a
        tensor-parallel group compute the same loss and take equal parts, so that the sum over all ranks is the batch's
        mean. Layers of `checkpointed` keep their input only, and compute all else again in the backward pass.
        """
        again = cast("Any", checkpoint).checkpoint
        states: torch.Tensor = self.embedding(token_ids)
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)[None]
        embeddings = self._rank_model.rotary(states, positions)
        for index, layer in zip(self._rank_model.layers, self.layers, strict=True):
            if index in checkpointed:
                states = again(
                    _through, layer, states, positions, embeddings, use_reentrant=False, preserve_rng_state=False
                )
            else:
                states = _through(layer, states, positions, embeddings)
        return self._loss(states, token_ids, num_rows)

    def _loss(self, states: torch.Tensor, token_ids: torch.Tensor, num_rows: int) -> torch.Tensor:
        assert self.norm is not None, "one stage holds the whole model"
        assert self.head is not None, "one stage holds the whole model"
        logits = self.head(self.norm(states[:, :-1]).flatten(0, 1))
        total = cross_entropy(logits.float(), token_ids[:, 1:].flatten(), reduction="sum")
        return total / (num_rows * (token_ids.shape[1] - 1) * self._rank_model.seat.strategy.tp)


def _through(layer: Any, states: torch.Tensor, positions: torch.Tensor, embeddings: object) -> torch.Tensor:  # noqa: ANN401 - transformers' layer
    out: torch.Tensor | tuple[torch.Tensor, ...] = layer(
        states,
        attention_mask=None,
        position_ids=positions,
        past_key_values=None,
        use_cache=False,
        position_embeddings=embeddings,
    )
    return out[0] if isinstance(out, tuple) else out
