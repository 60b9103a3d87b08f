"""Views: a parameter as a tensor in a file, or a stack or join of several, any slice of which can be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from moiety.errors import InputError
from moiety.runtime.block_scaled import cut, joined, quantised, stacked
from moiety.runtime.checkpoint.slice_reader import DTYPES, lengths
from moiety.runtime.fp8 import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.runtime.block_scaled import BlockScaled, CodeFormat
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

    @property
    def codes(self) -> torch.dtype | None:
        """What the files have all of it in, FP8 or pairs of E2M1, with scales; None: something else, or several."""
        ...

    def entries(self) -> Iterator[TensorEntry]:
        """Yield the tensors in files that it consists of."""
        ...

    def read(self, box: Box, reader: SliceReader, dtype: torch.dtype) -> torch.Tensor:
        """Return the slice in `dtype`, contiguous, in memory of its own."""
        ...

    def read_codes(self, box: Box, reader: SliceReader, dtype: torch.dtype, codes: CodeFormat) -> BlockScaled:
        """Return the slice [..., rows, columns] as codes and scales, for products in `dtype`.

        It has the codes and scales of the files. Where these have another format than FP8, it has those of whole blocks
        of 128 x 128, so that every slice of a parameter has the same numbers; in MXFP4 only what `codes` has so is
        read. Raises InputError where a weight is no number.
        """
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

    @property
    def codes(self) -> None:
        """It has no scales, and so no codes."""
        return

    def entries(self) -> Iterator[TensorEntry]:
        """Yield the tensor."""
        yield self.entry

    def read(self, box: Box, reader: SliceReader, dtype: torch.dtype) -> torch.Tensor:
        """Return the slice."""
        return reader.read(self.entry, box).to(dtype)

    def read_codes(self, box: Box, reader: SliceReader, dtype: torch.dtype, codes: CodeFormat) -> BlockScaled:
        """Return the slice, quantised to FP8."""
        assert codes == "fp8", "nothing is quantised to another format"
        return read_quantised(self, box, reader, dtype)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What views of several parts have in common."""

    parts: tuple[View, ...]

    @property
    def name(self) -> str:
        """Name of the first part."""
        return self.parts[0].name

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the first part."""
        return self.parts[0].dtype

    @property
    def codes(self) -> torch.dtype | None:
        """What all parts have."""
        found = {part.codes for part in self.parts}
        return found.pop() if len(found) == 1 else None

    def entries(self) -> Iterator[TensorEntry]:
        """Yield the tensors of all parts."""
        for part in self.parts:
            yield from part.entries()


@dataclass(frozen=True, slots=True)
class StackedView(_Parts):
    """Parts of one shape, stacked along a new first axis: experts that are stored one by one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of parts, then the shape of each."""
        return (len(self.parts), *self.parts[0].shape)

    def read(self, box: Box, reader: SliceReader, dtype: torch.dtype) -> torch.Tensor:
        """Return the slice, of which only the parts that it names are read."""
        out = torch.empty(lengths(box), dtype=dtype)
        for place, part in enumerate(box[0]):
            out[place] = self.parts[part].read(box[1:], reader, dtype)
        return out

    def read_codes(self, box: Box, reader: SliceReader, dtype: torch.dtype, codes: CodeFormat) -> BlockScaled:
        """Return the slice, of which only the parts that it names are read."""
        return stacked([self.parts[part].read_codes(box[1:], reader, dtype, codes) for part in box[0]])


@dataclass(frozen=True, slots=True)
class JoinedView(_Parts):
    """Parts one after the other along `axis`: gate and up projection."""

    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first part, with the sizes along the axis added."""
        first = self.parts[0].shape
        size = sum(part.shape[self.axis] for part in self.parts)
        return (*first[: self.axis], size, *first[self.axis + 1 :])

    def read(self, box: Box, reader: SliceReader, dtype: torch.dtype) -> torch.Tensor:
        """Return the slice, of which only the parts that it reaches into are read."""
        out = torch.empty(lengths(box), dtype=dtype)
        place = 0
        for part, inside in self._reached(box):
            size = len(inside[self.axis])
            out.narrow(self.axis, place, size).copy_(part.read(inside, reader, dtype))
            place += size
        return out

    def read_codes(self, box: Box, reader: SliceReader, dtype: torch.dtype, codes: CodeFormat) -> BlockScaled:
        """Return the slice, of which only the parts that it reaches into are read."""
        pieces = [part.read_codes(inside, reader, dtype, codes) for part, inside in self._reached(box)]
        return pieces[0] if len(pieces) == 1 else joined(pieces, self.axis - len(box))

    def _reached(self, box: Box) -> Iterator[tuple[View, Box]]:
        """Yield the parts that a slice reaches into, and what it is of each."""
        wanted = box[self.axis]
        start = 0
        for part in self.parts:
            stop = start + part.shape[self.axis]
            here = range(max(wanted.start, start), min(wanted.stop, stop))
            if here:
                inside = range(here.start - start, here.stop - start)
                yield part, (*box[: self.axis], inside, *box[self.axis + 1 :])
            start = stop


def read_quantised(view: View, box: Box, reader: SliceReader, dtype: torch.dtype) -> BlockScaled:
    """Return a slice of a view in another format in FP8: the blocks that it lies in are read whole and quantised."""
    *first, rows, columns = box
    around = [_whole_blocks(each, size) for each, size in zip((rows, columns), view.shape[-2:], strict=True)]
    found = quantised(view.read((*first, *around), reader, torch.float32), dtype)
    inside = [
        range(each.start - outer.start, each.stop - outer.start)
        for each, outer in zip((rows, columns), around, strict=True)
    ]
    return numbers_only(cut(found, inside[0], inside[1]), view)


def numbers_only(weights: BlockScaled, view: View) -> BlockScaled:
    """Return the weights; InputError where one of them is no number."""
    if weights.has_nan():
        entry = next(iter(view.entries()))
        raise InputError("holds weights that are no numbers (NaN)", source=str(entry.file), field=entry.name)
    return weights


def _whole_blocks(indices: range, size: int) -> range:
    return range(indices.start // BLOCK * BLOCK, min(-(-indices.stop // BLOCK) * BLOCK, size))
