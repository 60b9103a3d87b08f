"""KV cache: keys and values of the sequences in flight, a row of each layer's tensors for every sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moiety.errors import InputError
from moiety.runtime.conversion import WIRE_DTYPES

if TYPE_CHECKING:
    from collections.abc import Collection

    from moiety.dtypes import Dtype
    from moiety.runtime.model.batch import Batch
    from moiety.runtime.seat import Seat


def cache_dtype(name: Dtype) -> torch.dtype:
    """Return the number format that a plan's `kv_cache` names; raise InputError for one that no cache is kept in."""
    if name not in WIRE_DTYPES:
        formats = ", ".join(WIRE_DTYPES)
        remedy = "plan with another one: moiety plan ... --set dtypes.kv_cache=fp8"
        raise InputError(f"is kept in {formats}", field="options.dtypes.kv_cache", value=name, remedy=remedy)
    return WIRE_DTYPES[name]


class KvCache:
    """Keys and values of `num_slots` sequences of up to `capacity` tokens each.

    transformers' attention calls `update` with the new tokens of all sequences packed into one row. A latent cache
    (multi-head latent attention) keeps the compressed vectors and, for prompts, gives back those of every sequence,
    packed, to be expanded. Else the new ones come back, and the attention reads the rest with `layer`; while decoding
    a latent cache gives one of them, as transformers expands what it gets and nobody looks at it.

    `dtype` is what the values are kept in (None: as they come); who reads them converts them back. FP8 has the static
    scale 1 and saturates.
    """

    def __init__(
        self, num_slots: int, capacity: int, latent_layers: Collection[int] = (), dtype: torch.dtype | None = None
    ) -> None:
        self._num_slots, self._capacity, self._dtype = num_slots, capacity, dtype
        self._latent = frozenset(latent_layers)
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._batch: Batch | None = None

    @classmethod
    def for_seat(cls, seat: Seat, num_slots: int, capacity: int) -> KvCache:
        """Return an empty cache of the rank's layers in the plan's format; InputError for one that it cannot have."""
        layers = seat.plan.model.layers
        latent = [index for index in seat.layers if layers[index].attention.kind == "mla"]
        return cls(num_slots, capacity, latent, cache_dtype(seat.plan.options.dtypes.kv_cache))

    @property
    def size_bytes(self) -> int:
        """Bytes that the cache takes."""
        return sum(each.nbytes for pair in self._layers.values() for each in pair)

    def begin(self, batch: Batch) -> None:
        """Say whose tokens the next calls of `update` bring."""
        assert max((each.end for each in batch.segments), default=0) <= self._capacity, "sequences fit their rows"
        self._batch = batch

    def layer(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's keys and values, each [slots, heads, capacity, width]."""
        return self._layers[layer_idx]

    def is_latent(self, layer_idx: int) -> bool:
        """Whether the layer keeps compressed vectors."""
        return layer_idx in self._latent

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new tokens' `keys` and `values`, each [1, heads, tokens, width], in their sequences' rows."""
        batch = self._batch
        assert batch is not None, "a step has begun"
        if layer_idx not in self._layers:
            self._layers[layer_idx] = (self._room(keys), self._room(values))
        stored = self._layers[layer_idx]
        for cache, given in zip(stored, (keys, values), strict=True):
            new = _kept(given, cache.dtype)
            if batch.is_decode:
                cache[batch.slots, :, batch.ends - 1] = new[0].transpose(0, 1)
                continue
            for segment, low in zip(batch.segments, batch.offsets, strict=False):
                high = low + len(segment.token_ids)
                cache[segment.slot, :, segment.start : segment.end] = new[0, :, low:high]
        if layer_idx not in self._latent:
            return keys, values
        if batch.is_decode:
            return keys[:, :, :1], values[:, :, :1]
        gathered = [
            torch.cat([cache[each.slot, :, : each.end] for each in batch.segments], dim=1)[None].to(keys.dtype)
            for cache in stored
        ]
        return gathered[0], gathered[1]

    def _room(self, new: torch.Tensor) -> torch.Tensor:
        dtype = self._dtype or new.dtype
        return new.new_zeros(self._num_slots, new.shape[1], self._capacity, new.shape[3], dtype=dtype)


def _kept(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return values in the cache's format, the largest of it where they are beyond."""
    largest = torch.finfo(dtype).max
    return (values if largest >= torch.finfo(values.dtype).max else values.clamp(-largest, largest)).to(dtype)
