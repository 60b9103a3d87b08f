"""Quantised weights: FP8 with block scales and MXFP4, as they are or dequantised. Others are refused."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch

from moiety.errors import InputError
from moiety.runtime.block_scaled import BlockScaled, block_bounds
from moiety.runtime.checkpoint.slice_reader import DTYPES, whole
from moiety.runtime.checkpoint.view import StoredView, numbers_only, read_quantised
from moiety.runtime.expansion import expanded
from moiety.runtime.mxfp4 import E8M0, FP4_PAIRS, GROUP, from_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from moiety.runtime.block_scaled import CodeFormat
    from moiety.runtime.checkpoint.header import TensorEntry
    from moiety.runtime.checkpoint.index import Checkpoint
    from moiety.runtime.checkpoint.slice_reader import Box, SliceReader
    from moiety.runtime.checkpoint.view import View

FP8 = ("F8_E4M3", "F8_E5M2")
SCALE_SUFFIX = "_scale_inv"
_SCALE_FORMATS = ("F32", "BF16", "F16")
_BLOCK = (128, 128)  # DeepSeek-V3's, where config.json does not state `weight_block_size`
_REFUSED = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight.absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_scale_2": "NVFP4",
}
_REMEDY = "use a checkpoint in BF16, in FP8 with block scales (`weight_scale_inv`) or, of gpt-oss, in MXFP4"
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class BlockScaledView:
    """FP8 with one scale per block of rows and columns: weight = FP8 value x scale (DeepSeek-V3's checkpoints)."""

    entry: TensorEntry
    scales: TensorEntry
    """[..., ceil(rows / block rows), ceil(columns / block columns)], or one element for all."""
    block: tuple[int, int]
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Name in the file."""
        return self.entry.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        return self.entry.shape

    @property
    def codes(self) -> torch.dtype:
        """Number format of the weights without their scales."""
        return DTYPES[self.entry.dtype]

    def entries(self) -> Iterator[TensorEntry]:
        """Yield the weights and their scales."""
        yield self.entry
        yield self.scales

    def read(self, box: Box, reader: SliceReader, dtype: torch.dtype) -> torch.Tensor:
        """Return the slice, multiplied in FP32 and rounded once; of the scales, those of its blocks are read."""
        stored = reader.read(self.entry, box)
        if len(self.scales.shape) < len(self.entry.shape):
            scale = reader.read(self.scales, whole(self.scales.shape)).float()
            return stored.float().mul_(scale.reshape(())).to(dtype)
        *first, rows, columns = box
        row_blocks, column_blocks = (
            _blocks(axis, size) for axis, size in zip((rows, columns), self.block, strict=True)
        )
        scales = reader.read(self.scales, (*first, row_blocks, column_blocks)).float()
        scales = scales[..., torch.arange(columns.start, columns.stop) // self.block[1] - column_blocks.start]
        out = torch.empty(stored.shape, dtype=dtype)
        for place, block in enumerate(row_blocks):  # one row of blocks at a time in FP32
            start, stop = (min(max(each * self.block[0], rows.start), rows.stop) for each in (block, block + 1))
            part = (..., slice(start - rows.start, stop - rows.start), slice(None))
            out[part] = stored[part].float() * scales[..., place : place + 1, :]
        return out

    def read_codes(self, box: Box, reader: SliceReader, dtype: torch.dtype, codes: CodeFormat) -> BlockScaled:
        """Return the codes of the slice as they are, and the scales of its blocks."""
        assert codes == "fp8", "nothing is quantised to another format"
        *first, rows, columns = box
        bounds = [block_bounds(axis, size) for axis, size in zip((rows, columns), self.block, strict=True)]
        if len(self.scales.shape) < len(self.entry.shape):
            scale = reader.read(self.scales, whole(self.scales.shape)).float().reshape(())
            scales = scale.repeat(*map(len, first), *(len(each) - 1 for each in bounds))
        else:
            blocks = [_blocks(axis, size) for axis, size in zip((rows, columns), self.block, strict=True)]
            scales = reader.read(self.scales, (*first, *blocks)).float()
        row_bounds, column_bounds = bounds
        held = BlockScaled(reader.read(self.entry, box), scales, row_bounds, column_bounds, dtype)
        return numbers_only(held, self)


@dataclass(frozen=True, slots=True)
class Mxfp4View:
    """MXFP4: two E2M1 values a byte, low bits first, and an E8M0 scale per 32 values, along the last axis.

    gpt-oss's checkpoints hold `gate_up_proj` [experts, hidden, 2 intermediate] and `down_proj` [experts,
    intermediate, hidden] so, with the last two axes exchanged.
    """

    blocks: TensorEntry
    """[..., rows, groups, 16] bytes."""
    scales: TensorEntry
    """[..., rows, groups] bytes."""
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Name in the file of the blocks."""
        return self.blocks.name

    @property
    def shape(self) -> tuple[int, ...]:
        """[..., columns, rows]: as the model knows it."""
        *first, rows, groups = self.scales.shape
        return (*first, groups * GROUP, rows)

    @property
    def codes(self) -> torch.dtype:
        """Pairs of E2M1."""
        return FP4_PAIRS

    def entries(self) -> Iterator[TensorEntry]:
        """Yield the blocks and the scales."""
        yield self.blocks
        yield self.scales

    def read(self, box: Box, reader: SliceReader, dtype: torch.dtype) -> torch.Tensor:
        """Return the slice, multiplied in FP32 and rounded once; whole groups of 32 are read."""
        *first, columns, rows = box
        held = self._pairs(box, reader, dtype)
        out = torch.empty(*map(len, (*first, columns, rows)), dtype=dtype)
        for place in product(*(range(len(each)) for each in first)):
            out[place] = expanded(held[place])
        return out

    def read_codes(self, box: Box, reader: SliceReader, dtype: torch.dtype, codes: CodeFormat) -> BlockScaled:
        """Return the codes of the slice as they are and the scales of its groups; in FP8, quantised anew."""
        if codes == "fp8":
            return read_quantised(self, box, reader, dtype)
        return numbers_only(self._pairs(box, reader, dtype), self)

    def _pairs(self, box: Box, reader: SliceReader, dtype: torch.dtype) -> BlockScaled:
        *first, columns, rows = box
        groups = _blocks(columns, GROUP)
        packed = reader.read(self.blocks, (*first, rows, groups, range(GROUP // 2))).flatten(-2)
        scales = reader.read(self.scales, (*first, rows, groups)).view(E8M0)
        pairs = from_number(packed, columns.start - groups.start * GROUP, len(columns)).view(FP4_PAIRS)
        bounds = tuple(range(len(rows) + 1)), block_bounds(columns, GROUP)
        return BlockScaled(pairs, scales, *bounds, dtype).mT


def stored_views(checkpoint: Checkpoint) -> dict[str, View]:
    """Return every tensor of the checkpoint by name; those with scales as one that is dequantised when it is read.

    Raises InputError for other quantised formats, and for scales that do not fit.
    """
    tensors = checkpoint.tensors
    absorbed = {name.removesuffix("_blocks") + "_scales" for name in tensors if name.endswith("_blocks")}
    absorbed |= {name + SCALE_SUFFIX for name, entry in tensors.items() if entry.dtype in FP8}
    dtype = _stated_dtype(checkpoint)
    views: dict[str, View] = {}
    for name, entry in tensors.items():
        for suffix, method in _REFUSED.items():
            if name.endswith(suffix):
                rule = f"is quantised in the style of {method}, which is not read"
                raise InputError(rule, source=str(entry.file), field=name, remedy=_REMEDY)
        if entry.dtype in FP8 and name + SCALE_SUFFIX in tensors:
            views[name] = _block_scaled(entry, tensors[name + SCALE_SUFFIX], checkpoint, dtype)
        elif entry.dtype == "U8" and name.endswith("_blocks"):
            views[name.removesuffix("_blocks")] = _mxfp4(entry, tensors, dtype)
        elif name not in absorbed:
            views[name] = StoredView(entry)
    return views


def _stated_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the number format that config.json states for computing; BF16 where it states none."""
    config = checkpoint.text_config
    stated = config.get("dtype", config.get("torch_dtype", checkpoint.config.get("torch_dtype")))
    return _DTYPES.get(str(stated).removeprefix("torch."), torch.bfloat16)


def _block_scaled(entry: TensorEntry, scales: TensorEntry, checkpoint: Checkpoint, dtype: torch.dtype) -> View:
    match checkpoint.quantization.get("weight_block_size"):
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            block = (rows, columns)
        case _:
            block = _BLOCK
    *first, rows, columns = entry.shape if len(entry.shape) > 1 else (1, *entry.shape)
    expected = (*first, -(-rows // block[0]), -(-columns // block[1]))
    for_all = scales.shape in {(), (1,)} and len(entry.shape) > 1
    if scales.dtype not in _SCALE_FORMATS or not (for_all or scales.shape == expected):
        rule = f"scales of {entry.name} must be F32 or BF16 of shape {list(expected)}: one a block of {block}"
        raise InputError(rule, source=str(scales.file), field=scales.name, value=f"{scales.dtype} {list(scales.shape)}")
    return BlockScaledView(entry, scales, block, dtype)


def _mxfp4(blocks: TensorEntry, tensors: Mapping[str, TensorEntry], dtype: torch.dtype) -> View:
    name = blocks.name.removesuffix("_blocks") + "_scales"
    scales = tensors.get(name)
    if scales is None:
        rule = f"MXFP4 needs its scales, {name}, which no file holds"
        raise InputError(rule, source=str(blocks.file), field=blocks.name)
    if scales.dtype != "U8" or (*scales.shape, GROUP // 2) != blocks.shape or len(scales.shape) < len("rc"):
        rule = f"scales of {blocks.name} {list(blocks.shape)} must be U8 of shape {list(blocks.shape[:-1])}"
        raise InputError(rule, source=str(scales.file), field=name, value=f"{scales.dtype} {list(scales.shape)}")
    return Mxfp4View(blocks, scales, dtype)


def _blocks(indices: range, size: int) -> range:
    """Return the numbers of the blocks of `size` that the indices lie in."""
    return range(indices.start // size, -(-indices.stop // size))
