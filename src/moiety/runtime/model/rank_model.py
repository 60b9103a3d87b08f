"""RankModel: the part of the model that one rank computes, one micro-batch at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from moiety.runtime.model.kv_cache import CachedStep

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moiety.runtime.dispatch.serving import SlotChooser
    from moiety.runtime.experts.layer import ExpertLayer
    from moiety.runtime.model.batch import Batch
    from moiety.runtime.model.decoding import Decoding
    from moiety.runtime.model.graphs import GraphedDecoding
    from moiety.runtime.model.kv_cache import KvCache
    from moiety.runtime.seat import Seat
    from moiety.runtime.telemetry import Recorder


@dataclass(frozen=True, slots=True, eq=False)
class RankModel:
    """A stage's layers with this rank's slices in them; transformers' modules do the computing."""

    seat: Seat
    layers: Mapping[int, Any]
    """transformers' decoder layers of the stage, by their index in the model."""
    rotary: Any
    embedding: torch.nn.Module | None
    """None but on the first stage."""
    norm: torch.nn.Module | None
    """None but on the last stage."""
    head: torch.nn.Module | None
    """None but on the last stage."""
    expert_layers: Mapping[int, ExpertLayer]
    dtype: torch.dtype
    weight_bytes: Mapping[str, int]
    """Bytes of this rank's weights, by the kinds of the memory plan."""
    expanded_bytes: int
    """Of the memory that a weight in FP8 is expanded into for its product: the most, as one is at a time."""
    bytes_read: int
    """Bytes read from the checkpoint."""
    device: torch.device
    recorder: Recorder
    """What hears of every op that ends."""
    prefix: str
    """What the names of the decoder's parameters begin with."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of all parameters and persistent buffers of the whole model, by transformers' name."""

    decoding: Decoding | GraphedDecoding | None = None
    """What steps of decoding are computed in; None: in whatever memory PyTorch gives each op."""

    def serve_by(self, choosers: Mapping[int, SlotChooser]) -> None:
        """Serve the experts of each layer by another map from the next step on."""
        for layer, module in self.expert_layers.items():
            module.held = replace(module.held, chooser=choosers[layer])
        if self.decoding is not None:
            self.decoding.forget()

    def hidden(self, batch: Batch, cache: KvCache, received: torch.Tensor | None) -> torch.Tensor:
        """Return the states after this stage's layers, [tokens, hidden]; `received` are those of the stage before.

        Those of a step of decoding stay until the next step.
        """
        if self.decoding is not None and batch.is_decode:
            return self.decoding.hidden(batch, cache, received, self._through_layers)
        return self._through_layers(CachedStep(batch, cache), received)

    def _through_layers(self, step: CachedStep, received: torch.Tensor | None) -> torch.Tensor:
        tensors = step.batch.tensors
        if self.embedding is not None:
            states: torch.Tensor = self.embedding(tensors.token_ids)[None]
        else:
            assert received is not None, "a later stage gets its states from the one before"
            states = received[None]
        if step.batch.num_tokens == 0:
            return self._takes_part(states[0])
        positions = self.rotary(states, tensors.positions)
        for layer in self.layers.values():
            out: torch.Tensor | tuple[torch.Tensor, ...] = layer(
                states,
                attention_mask=None,
                position_ids=tensors.positions,
                past_key_values=step,
                use_cache=True,
                position_embeddings=positions,
                step=step,
                recorder=self.recorder,
            )
            states = out[0] if isinstance(out, tuple) else out
        return states[0]

    def _takes_part(self, nothing: torch.Tensor) -> torch.Tensor:
        """Serve the other groups' tokens in a step in which this one has none; return its states, [0, hidden]."""
        moe = self.seat.plan.model.moe
        for layer in self.expert_layers.values():
            assert moe is not None, "only models with experts have expert layers"
            chosen = torch.zeros(0, moe.top_k, dtype=torch.int64, device=self.device)
            layer(nothing, chosen, chosen.float())
        return nothing

    def logits(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the logits of the tokens that ask for the next one, [emitting, vocabulary]."""
        if self.decoding is not None and batch.is_decode:
            return self.decoding.logits(batch, lambda: self._through_head(hidden, batch))
        return self._through_head(hidden, batch)

    def _through_head(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert self.norm is not None, "only the last stage has the head"
        assert self.head is not None, "only the last stage has the head"
        last = self.norm(hidden.index_select(0, batch.tensors.emitting))
        self.recorder.mark("final_norm")
        out: torch.Tensor = self.head(last)
        return out
