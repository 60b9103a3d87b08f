"""Views: a parameter as a tensor in a file, or a stack or join of several, any slice of which can be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from moiety.runtime.checkpoint.slice_reader import DTYPES, lengths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.runtime.checkpoint.header import TensorEntry
    from moiety.runtime.checkpoint.slice_reader import Box, SliceReader


class View(Protocol):
    """A tensor that is read when it is sliced."""

    @property
    def name(self) -> str:
        """Name in the files of the tensor, or of the first of them."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape as the model knows it."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Number format that `read` gives where none is asked for."""
        ...

    def entries(self) -> Iterator[TensorEntry]:
        """Yield the tensors in files that it consists of."""
        ...

    def read(self, box: Box, reader: SliceReader, dtype: torch.dtype) -> torch.Tensor:
        """Return the slice in `dtype`, contiguous, in memory of its own."""
        ...


@dataclass(frozen=True, slots=True)
class StoredView:
    """One tensor as it lies in the file."""

    entry: TensorEntry

    @property
    def name(self) -> str:
        """Name in the file."""
        return self.entry.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        return self.entry.shape

    @property
    def dtype(self) -> torch.dtype:
        """Number format in the file."""
        return DTYPES[self.entry.dtype]

    def entries(self) -> Iterator[TensorEntry]:
        """Yield the tensor."""
        yield self.entry

    def read(self, box: Box, reader: SliceReader, dtype: torch.dtype) -> torch.Tensor:
        """Return the slice."""
        return reader.read(self.entry, box).to(dtype)


@dataclass(frozen=True, slots=True)
class StackedView:
    """Parts of one shape, stacked along a new first axis: experts that are stored one by one."""

    parts: tuple[View, ...]

    @property
    def name(self) -> str:
        """Name of the first part."""
        return self.parts[0].name

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of parts, then the shape of each."""
        return (len(self.parts), *self.parts[0].shape)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the first part."""
        return self.parts[0].dtype

    def entries(self) -> Iterator[TensorEntry]:
        """Yield the tensors of all parts."""
        for part in self.parts:
            yield from part.entries()

    def read(self, box: Box, reader: SliceReader, dtype: torch.dtype) -> torch.Tensor:
        """Return the slice, of which only the parts that it names are read."""
        out = torch.empty(lengths(box), dtype=dtype)
        for place, part in enumerate(box[0]):
            out[place] = self.parts[part].read(box[1:], reader, dtype)
        return out


@dataclass(frozen=True, slots=True)
class JoinedView:
    """Parts one after the other along `axis`: gate and up projection."""

    parts: tuple[View, ...]
    axis: int

    @property
    def name(self) -> str:
        """Name of the first part."""
        return self.parts[0].name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first part, with the sizes along the axis added."""
        first = self.parts[0].shape
        size = sum(part.shape[self.axis] for part in self.parts)
        return (*first[: self.axis], size, *first[self.axis + 1 :])

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the first part."""
        return self.parts[0].dtype

    def entries(self) -> Iterator[TensorEntry]:
        """Yield the tensors of all parts."""
        for part in self.parts:
            yield from part.entries()

    def read(self, box: Box, reader: SliceReader, dtype: torch.dtype) -> torch.Tensor:
        """Return the slice, of which only the parts that it reaches into are read."""
        out = torch.empty(lengths(box), dtype=dtype)
        wanted = box[self.axis]
        start = 0
        for part in self.parts:
            stop = start + part.shape[self.axis]
            here = range(max(wanted.start, start), min(wanted.stop, stop))
            if here:
                inside = range(here.start - start, here.stop - start)
                piece = part.read((*box[: self.axis], inside, *box[self.axis + 1 :]), reader, dtype)
                out.narrow(self.axis, here.start - wanted.start, len(here)).copy_(piece)
            start = stop
        return out
