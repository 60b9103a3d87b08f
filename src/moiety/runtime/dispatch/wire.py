"""Rows on the wire: a token's hidden state with what its experts need to know, in one message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from moiety.runtime.conversion import from_array
from moiety.runtime.dispatch.quantize import dequantized, quantize_into, quantized
from moiety.runtime.fp8 import FP8, num_scales

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WORD = 8


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Tokens on their way to experts. `NO_SLOT` fills up where a row goes to fewer than `width` slots."""

    hidden: torch.Tensor
    """[rows, hidden]."""
    keys: torch.Tensor
    """[rows], int64: number of the token in the stage, the same on every way it may take."""
    slots: torch.Tensor
    """[rows, width], int16: physical slots that the row goes to, in the order of the router's choice."""
    weights: torch.Tensor
    """[rows, width], float32: the router's weights."""
    all_here: bool = False
    """Whether it is known without a look at `slots` that none is `NO_SLOT`."""


NO_SLOT = -1


class Labels(NamedTuple):
    """What rows say beside the hidden states; see `Rows`."""

    keys: NDArray[np.int64]
    slots: NDArray[np.int64]
    weights: NDArray[np.float32]

    def at(self, index: NDArray[np.int64]) -> Labels:
        """Return those of the rows at `index`."""
        return Labels(self.keys[index], self.slots[index], self.weights[index])


@dataclass(frozen=True, slots=True)
class WireFormat:
    """How a row is laid out in bytes: the hidden state, its scales, the key, the weights, the slots; on whole words."""

    hidden_size: int
    width: int
    """Slots that a row names."""
    dtype: torch.dtype
    """Of the hidden states on the wire; FP8 has scales."""
    computed: torch.dtype
    """Of the hidden states before and after."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self._key_at + _WORD + _words(4 * self.width) + _words(2 * self.width)

    @property
    def _key_at(self) -> int:
        return _words(self.hidden_size * self.dtype.itemsize) + _words(4 * self._num_scales)

    @property
    def _num_scales(self) -> int:
        return num_scales(self.hidden_size) if self.dtype == FP8 else 0

    def pack(self, rows: Rows, index: torch.Tensor) -> torch.Tensor:
        """Return rows as bytes, [rows, row_bytes] uint8: the hidden states at `index` [rows], all else as given."""
        wire = torch.empty(index.shape[0], self.row_bytes, dtype=torch.uint8, device=rows.hidden.device)
        hidden, scales, keys, weights, slots = self._views(wire)
        if self.dtype == FP8:
            quantize_into(hidden, scales, rows.hidden, index)
        elif rows.hidden.dtype == self.dtype:
            torch.index_select(rows.hidden, 0, index, out=hidden)  # many times faster than by [], which copies twice
        else:
            hidden.copy_(rows.hidden.index_select(0, index))
        keys.copy_(rows.keys)
        weights.copy_(rows.weights)
        slots.copy_(rows.slots)
        return wire

    def unpack(self, wire: torch.Tensor) -> Rows:
        """Return the rows of [rows, row_bytes] bytes: views of them, but for hidden states in another format."""
        hidden, scales, keys, weights, slots = self._views(wire)
        if self.dtype == FP8:
            hidden = dequantized(hidden, scales, self.computed)
        elif self.dtype != self.computed:
            hidden = hidden.to(self.computed)
        return Rows(hidden, keys, slots, weights)

    def encoded(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden states as rows carry them, and their scales, of which there may be none."""
        if self.dtype == FP8:
            codes, scales = quantized(hidden)
            return codes.view(torch.uint8), scales  # torch gathers no FP8
        return hidden.to(self.dtype), hidden.new_empty(hidden.shape[0], 0, dtype=torch.float32)

    def fill(
        self, wire: torch.Tensor, encoded: tuple[torch.Tensor, torch.Tensor], index: NDArray[np.int64], labels: Labels
    ) -> None:
        """Fill rows of the wire on the host as `pack` does: with the encoded states at `index` [rows], and labels."""
        hidden, scales, *_ = self._views(wire)
        at = from_array(np.ascontiguousarray(index))
        torch.index_select(encoded[0], 0, at, out=hidden.view(encoded[0].dtype))
        if self._num_scales:
            torch.index_select(encoded[1], 0, at, out=scales)
        self._label(wire, labels)

    def copy(self, wire: torch.Tensor, rows: torch.Tensor, index: NDArray[np.int64], labels: Labels) -> None:
        """Fill rows of the wire, on the host, with those at `index` [rows] of others, and other labels."""
        torch.index_select(rows, 0, from_array(np.ascontiguousarray(index)), out=wire)
        self._label(wire, labels)

    def labels(self, wire: torch.Tensor) -> Labels:
        """Return what rows of the wire, on the host, say."""
        _, _, keys, weights, slots = self._views(wire)
        return Labels(keys.numpy(), slots.numpy().astype(np.int64), weights.numpy())

    def blank(self, wire: torch.Tensor) -> None:
        """Have rows of the wire go to no slot."""
        _, _, keys, _, slots = self._views(wire)
        keys.zero_()
        slots.fill_(NO_SLOT)

    def _label(self, wire: torch.Tensor, labels: Labels) -> None:
        _, _, keys, weights, slots = self._views(wire)
        keys.numpy()[:], weights.numpy()[:], slots.numpy()[:] = labels.keys, labels.weights, labels.slots

    def _views(self, wire: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the parts of wire rows: hidden states, scales, keys, weights, slots."""
        scales_at = _words(self.hidden_size * self.dtype.itemsize)
        weights_at = self._key_at + _WORD
        slots_at = weights_at + _words(4 * self.width)
        floats = wire.view(torch.float32)
        return (
            wire.view(self.dtype)[:, : self.hidden_size],
            floats[:, scales_at // 4 : scales_at // 4 + self._num_scales],
            wire.view(torch.int64)[:, self._key_at // _WORD],
            floats[:, weights_at // 4 : weights_at // 4 + self.width],
            wire.view(torch.int16)[:, slots_at // 2 : slots_at // 2 + self.width],
        )


def _words(size_bytes: int) -> int:
    return -(-size_bytes // _WORD) * _WORD
