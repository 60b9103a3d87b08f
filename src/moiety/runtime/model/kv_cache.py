"""KV cache: keys and values of the sequences in flight, a row of each layer's tensors for every sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moiety.errors import InputError
from moiety.model.attention import GroupedQueryAttention
from moiety.runtime.arena.trace import called
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

    A latent layer (multi-head latent attention) keeps the compressed vectors. A windowed one keeps the last tokens of a
    sequence, as many as its window has, each where the one that left the window lay.

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
        self.capacity = capacity
        """Tokens of a sequence, at most."""
        self._num_slots, self._dtype = num_slots, dtype
        self._latent = frozenset(latent_layers)
        self._windows = {layer: window for layer, window in (windows or {}).items() if window < capacity}
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def for_seat(cls, seat: Seat, num_slots: int, capacity: int) -> KvCache:
        """Return an empty cache of the rank's layers in the plan's format; InputError for one that it cannot have."""
        attentions = {index: seat.plan.model.layers[index].attention for index in seat.layers}
        latent = [index for index, each in attentions.items() if each is not None and each.kind == "mla"]
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

    def clear(self, slot: int) -> None:
        """Have zeros in a sequence's row: what is not finite there would reach the next one in it, however hidden."""
        for pair in self._layers.values():
            for each in pair:
                each[slot].zero_()

    def layer(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's keys and values, each [slots, heads, capacity or window, width]."""
        return self._layers[layer_idx]

    def is_latent(self, layer_idx: int) -> bool:
        """Whether the layer keeps compressed vectors."""
        return layer_idx in self._latent

    def window(self, layer_idx: int) -> int | None:
        """Return how many tokens of a sequence the layer keeps; None where it keeps all."""
        return self._windows.get(layer_idx)

    def num_kept(self, layer_idx: int) -> int:
        """Return how many tokens of a sequence the layer has room for."""
        return self._windows.get(layer_idx, self.capacity)

    def gives_sequences(self, layer_idx: int) -> bool:
        """Whether prompts' attention gets all that they see, packed, and not their new tokens alone."""
        return layer_idx in self._latent or layer_idx in self._windows

    def num_before(self, segment: Segment, layer_idx: int) -> int:
        """Return how many tokens before those of a segment the layer keeps for them to see."""
        window = self._windows.get(layer_idx)
        return segment.start if window is None else min(segment.start, window - 1)

    def kept(self, values: torch.Tensor) -> torch.Tensor:
        """Return values in the cache's format, the largest of it where they are beyond."""
        if self._dtype is None:
            return values
        largest = torch.finfo(self._dtype).max
        return (values if largest >= torch.finfo(values.dtype).max else values.clamp(-largest, largest)).to(self._dtype)

    def store(self, batch: Batch, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store new tokens in their sequences' rows: `keys` and `values`, each [1, heads, tokens, width] and `kept`."""
        self._has_room(batch, layer_idx, keys, values)
        for cache, new in zip(self._layers[layer_idx], (keys, values), strict=True):
            _store(cache, new, batch)

    def store_next(
        self, batch: Batch, layer_idx: int, keys: torch.Tensor, values: torch.Tensor, places: torch.Tensor
    ) -> None:
        """Store as `store` does where each segment is one token, at its of the `places` [segments] in the rows."""
        self._has_room(batch, layer_idx, keys, values)
        for cache, new in zip(self._layers[layer_idx], (keys, values), strict=True):
            cache[batch.tensors.slots, :, places] = new[0].transpose(0, 1)

    def sequences(
        self, batch: Batch, layer_idx: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the new tokens see of the batch's sequences, each [1, heads, tokens, width] and packed.

        They themselves are not stored yet: `keys` and `values`, which are `kept`.
        """
        self._has_room(batch, layer_idx, keys, values)
        cached = self._layers[layer_idx]
        return self._sequences(cached[0], keys, batch, layer_idx), self._sequences(cached[1], values, batch, layer_idx)

    def _sequences(self, cache: torch.Tensor, new: torch.Tensor, batch: Batch, layer_idx: int) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        for segment, low in zip(batch.segments, batch.offsets, strict=False):
            first = segment.start - self.num_before(segment, layer_idx)
            row = cache[segment.slot]
            parts += [row[:, each] for each in _places(first, segment.start, row.shape[1])]
            parts.append(new[0, :, low : low + len(segment.token_ids)])
        return torch.cat(parts, dim=1)[None]

    def _has_room(self, batch: Batch, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Make room for a layer when its first tokens come."""
        assert max((each.end for each in batch.segments), default=0) <= self.capacity, "sequences fit their rows"
        if layer_idx not in self._layers:
            self._layers[layer_idx] = (self._room(keys, layer_idx), self._room(values, layer_idx))

    def _room(self, new: torch.Tensor, layer_idx: int) -> torch.Tensor:
        return new.new_zeros(self._num_slots, new.shape[1], self.num_kept(layer_idx), new.shape[3])


class CachedStep:
    """A step of a micro-batch over a cache, in the place of transformers' cache.

    Both may be replaced by others of the same shape: a step that is noted once is computed for many batches.
    """

    def __init__(self, batch: Batch, cache: KvCache) -> None:
        self.batch, self.cache = batch, cache

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new tokens' `keys` and `values`, each [1, heads, tokens, width]; return what attention goes on with.

        For prompts of a latent or windowed layer those of every sequence come back, packed, as far as its new tokens
        see them. Else the new ones do, and the attention reads the rest itself; while decoding a latent layer gives one
        of them, as transformers expands what it gets and nobody looks at it.
        """
        batch, cache = self.batch, self.cache
        new = cache.kept(keys), cache.kept(values)
        if batch.is_decode:
            places = batch.tensors.positions[0]
            if cache.window(layer_idx) is not None:
                places = places % cache.num_kept(layer_idx)
            called(self._store_next, layer_idx, *new, places)
            return (keys[:, :, :1], values[:, :, :1]) if cache.is_latent(layer_idx) else (keys, values)
        given = keys, values
        if cache.gives_sequences(layer_idx):  # before a window's oldest are overwritten
            packed = cache.sequences(batch, layer_idx, *new)
            given = packed[0].to(keys.dtype), packed[1].to(values.dtype)
        cache.store(batch, layer_idx, *new)
        return given

    def _store_next(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor, places: torch.Tensor) -> None:
        self.cache.store_next(self.batch, layer_idx, keys, values, places)


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
