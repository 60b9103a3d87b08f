"""KV cache: keys and values of the sequences in flight, a row of each layer's tensors for every sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moiety.runtime.arena.trace import called

if TYPE_CHECKING:
    from collections.abc import Collection

    from moiety.runtime.model.batch import Batch


class KvCache:
    """Keys and values of `num_slots` sequences of up to `capacity` tokens each.

    A latent layer (multi-head latent attention) keeps the compressed vectors.
    """

    def __init__(self, num_slots: int, capacity: int, latent_layers: Collection[int] = ()) -> None:
        self.capacity = capacity
        """Tokens of a sequence, at most."""
        self._num_slots = num_slots
        self._latent = frozenset(latent_layers)
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes that the cache takes."""
        return sum(each.nbytes for pair in self._layers.values() for each in pair)

    def layer(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's keys and values, each [slots, heads, capacity, width]."""
        return self._layers[layer_idx]

    def is_latent(self, layer_idx: int) -> bool:
        """Whether the layer keeps compressed vectors."""
        return layer_idx in self._latent

    def store(self, batch: Batch, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store the new tokens' `keys` and `values`, each [1, heads, tokens, width], in their sequences' rows."""
        assert max((each.end for each in batch.segments), default=0) <= self.capacity, "sequences fit their rows"
        if layer_idx not in self._layers:
            self._layers[layer_idx] = (self._room(keys), self._room(values))
        for cache, new in zip(self._layers[layer_idx], (keys, values), strict=True):
            if batch.is_decode:
                cache[batch.tensors.slots, :, batch.tensors.positions[0]] = new[0].transpose(0, 1)
                continue
            for segment, low in zip(batch.segments, batch.offsets, strict=False):
                high = low + len(segment.token_ids)
                cache[segment.slot, :, segment.start : segment.end] = new[0, :, low:high]

    def sequences(self, batch: Batch, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the layer keeps of the batch's sequences so far, packed, each [1, heads, tokens, width]."""
        keys, values = (
            torch.cat([cache[each.slot, :, : each.end] for each in batch.segments], dim=1)[None]
            for cache in self._layers[layer_idx]
        )
        return keys, values

    def _room(self, new: torch.Tensor) -> torch.Tensor:
        return new.new_zeros(self._num_slots, new.shape[1], self.capacity, new.shape[3])


class CachedStep:
    """A step of a micro-batch over a cache, in the place of transformers' cache.

    Both may be replaced by others of the same shape: a step that is noted once is computed for many batches.
    """

    def __init__(self, batch: Batch, cache: KvCache) -> None:
        self.batch, self.cache = batch, cache

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new tokens' keys and values; return what transformers' attention goes on with.

        For prompts of a latent layer those are every sequence's, to be expanded. Else the new ones come back, and the
        attention reads the rest itself; while decoding a latent layer gives one of them, as transformers expands what
        it gets and nobody looks at it.
        """
        called(self._store, layer_idx, keys, values)
        if not self.cache.is_latent(layer_idx):
            return keys, values
        if self.batch.is_decode:
            return keys[:, :, :1], values[:, :, :1]
        return self.cache.sequences(self.batch, layer_idx)

    def _store(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.cache.store(self.batch, layer_idx, keys, values)
