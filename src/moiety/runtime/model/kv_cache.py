"""KV cache: keys and values of the sequences in flight, a row of each layer's tensors for every sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moiety.errors import InputError
from moiety.model.attention import GroupedQueryAttention
from moiety.runtime.conversion import WIRE_DTYPES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from moiety.dtypes import Dtype
    from moiety.runtime.model.batch import Batch, Segment
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

    transformers' attention calls `update` with the new tokens of all sequences packed into one row. A latent layer
    (multi-head latent attention) keeps the compressed vectors. A windowed one keeps the last tokens of a sequence, as
    many as its window has, each where the one that left the window lay.

    `windows` has the windows of layers that have one; `dtype` is what the values are kept in (None: as they come), and
    who reads them converts them back. FP8 has the static scale 1 and saturates.
    """

    def __init__(
        self,
        num_slots: int,
        capacity: int,
        latent_layers: Collection[int] = (),
        dtype: torch.dtype | None = None,
        windows: Mapping[int, int] | None = None,
    ) -> None:
        self._num_slots, self._capacity, self._dtype = num_slots, capacity, dtype
        self._latent = frozenset(latent_layers)
        self._windows = {layer: window for layer, window in (windows or {}).items() if window < capacity}
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._batch: Batch | None = None

    @classmethod
    def for_seat(cls, seat: Seat, num_slots: int, capacity: int) -> KvCache:
        """Return an empty cache of the rank's layers in the plan's format; InputError for one that it cannot have."""
        attentions = {index: seat.plan.model.layers[index].attention for index in seat.layers}
        latent = [index for index, each in attentions.items() if each.kind == "mla"]
        windows = {
            index: each.sliding_window
            for index, each in attentions.items()
            if isinstance(each, GroupedQueryAttention) and each.sliding_window
        }
        return cls(num_slots, capacity, latent, cache_dtype(seat.plan.options.dtypes.kv_cache), windows)

    @property
    def size_bytes(self) -> int:
        """Bytes that the cache takes."""
        return sum(each.nbytes for pair in self._layers.values() for each in pair)

    def begin(self, batch: Batch) -> None:
        """Say whose tokens the next calls of `update` bring."""
        assert max((each.end for each in batch.segments), default=0) <= self._capacity, "sequences fit their rows"
        self._batch = batch

    def layer(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's keys and values, each [slots, heads, capacity or window, width]."""
        return self._layers[layer_idx]

    def is_latent(self, layer_idx: int) -> bool:
        """Whether the layer keeps compressed vectors."""
        return layer_idx in self._latent

    def window(self, layer_idx: int) -> int | None:
        """Return how many tokens of a sequence the layer keeps; None where it keeps all."""
        return self._windows.get(layer_idx)

    def gives_sequences(self, layer_idx: int) -> bool:
        """Whether `update` gives back all that prompts see, packed, and not their new tokens alone."""
        return layer_idx in self._latent or layer_idx in self._windows

    def num_before(self, segment: Segment, layer_idx: int) -> int:
        """Return how many tokens before those of a segment the layer keeps for them to see."""
        window = self._windows.get(layer_idx)
        return segment.start if window is None else min(segment.start, window - 1)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new tokens' `keys` and `values`, each [1, heads, tokens, width], in their sequences' rows.

        For prompts of a latent or windowed layer those of every sequence come back, packed, as far as its new tokens
        see them. Else the new ones do, and the attention reads the rest with `layer`; while decoding a latent layer
        gives one of them, as transformers expands what it gets and nobody looks at it.
        """
        batch = self._batch
        assert batch is not None, "a step has begun"
        if layer_idx not in self._layers:
            self._layers[layer_idx] = (self._room(keys, layer_idx), self._room(values, layer_idx))
        stored = self._layers[layer_idx]
        new = [_kept(each, cache.dtype) for cache, each in zip(stored, (keys, values), strict=True)]
        if batch.is_decode:
            places = (batch.ends - 1) % stored[0].shape[2]
            for cache, each in zip(stored, new, strict=True):
                cache[batch.slots, :, places] = each[0].transpose(0, 1)
            return (keys[:, :, :1], values[:, :, :1]) if layer_idx in self._latent else (keys, values)
        given = keys, values
        if self.gives_sequences(layer_idx):  # before a window's oldest are overwritten
            packed = [self._sequences(*each, batch, layer_idx) for each in zip(stored, new, strict=True)]
            given = packed[0].to(keys.dtype), packed[1].to(values.dtype)
        for cache, each in zip(stored, new, strict=True):
            _store(cache, each, batch)
        return given

    def _sequences(self, cache: torch.Tensor, new: torch.Tensor, batch: Batch, layer_idx: int) -> torch.Tensor:
        """Return what the new tokens see of the batch's sequences, themselves included, [1, heads, tokens, width]."""
        parts: list[torch.Tensor] = []
        for segment, low in zip(batch.segments, batch.offsets, strict=False):
            first = segment.start - self.num_before(segment, layer_idx)
            row = cache[segment.slot]
            parts += [row[:, each] for each in _places(first, segment.start, row.shape[1])]
            parts.append(new[0, :, low : low + len(segment.token_ids)])
        return torch.cat(parts, dim=1)[None]

    def _room(self, new: torch.Tensor, layer_idx: int) -> torch.Tensor:
        kept = self._windows.get(layer_idx, self._capacity)
        return new.new_zeros(self._num_slots, new.shape[1], kept, new.shape[3], dtype=self._dtype or new.dtype)


def _store(cache: torch.Tensor, new: torch.Tensor, batch: Batch) -> None:
    """Keep the last of each segment's tokens in `cache` [slots, heads, kept, width], as many as it has room for."""
    for segment, high in zip(batch.segments, batch.offsets[1:], strict=True):
        number = min(len(segment.token_ids), cache.shape[2])
        low = high - number
        for places in _places(segment.end - number, segment.end, cache.shape[2]):
            count = places.stop - places.start
            cache[segment.slot, :, places] = new[0, :, low : low + count]
            low += count


def _places(low: int, high: int, size: int) -> tuple[slice, ...]:
    """Return where the tokens from `low` to `high` of a sequence lie in a row of `size` tokens, in their order."""
    first, number = low % size, high - low
    if first + number <= size:
        return (slice(first, first + number),)
    return slice(first, size), slice(0, first + number - size)


def _kept(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return values in the cache's format, the largest of it where they are beyond."""
    largest = torch.finfo(dtype).max
    return (values if largest >= torch.finfo(values.dtype).max else values.clamp(-largest, largest)).to(dtype)
