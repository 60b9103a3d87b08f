"""Checkpoints in FP8 with block scales, made of others, and what they stand for."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 128


def is_quantised(name: str) -> bool:
    """Return whether FP8 checkpoints have a tensor in FP8: projections, not routers, norms, embeddings or the head."""
    return ("_proj" in name and "bias" not in name) or ".w1." in name or ".w2." in name or ".w3." in name


def quantised_by_block(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scales [..., blocks, blocks] of [..., rows, columns], block by block, the largest 448."""
    rows, columns = values.shape[-2:]
    codes = torch.empty(values.shape, dtype=torch.float8_e4m3fn)
    scales = torch.empty(*values.shape[:-2], -(-rows // BLOCK), -(-columns // BLOCK))
    for row in range(scales.shape[-2]):
        for column in range(scales.shape[-1]):
            part = (..., slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK))
            scale = values[part].float().abs().amax(dim=(-2, -1)) / 448
            scales[..., row, column] = scale
            codes[part] = (values[part].float() / scale[..., None, None]).to(torch.float8_e4m3fn)
    return codes, scales


def dequantised_by_block(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the numbers that codes and scales stand for, in float32."""
    spread = scales.repeat_interleave(BLOCK, -2)[..., : codes.shape[-2], :]
    return codes.float() * spread.repeat_interleave(BLOCK, -1)[..., : codes.shape[-1]]


def save_fp8(folder: Path, target: Path, *, kept: str = "no such tensor") -> Path:
    """Save a checkpoint in FP8 as DeepSeek-V3's are, but for the tensors whose names have `kept` in them."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "fmt": "e4m3"}
    (target / "config.json").write_text(json.dumps(config))
    file = target / "model.safetensors"
    tensors: dict[str, torch.Tensor] = {}
    for name, values in load_file(file).items():
        tensors[name] = values
        if is_quantised(name) and kept not in name:
            tensors[name], tensors[f"{name}_scale_inv"] = quantised_by_block(values)
    save_file(tensors, file)
    return target


def save_dequantised(folder: Path, target: Path, *, kept: str = "no such tensor") -> Path:
    """Save what `save_fp8` saves as plain numbers, in the format of the checkpoint that it is made of."""
    shutil.copytree(folder, target)
    file = target / "model.safetensors"
    tensors = load_file(file)
    for name, values in tensors.items():
        if is_quantised(name) and kept not in name:
            tensors[name] = dequantised_by_block(*quantised_by_block(values)).to(values.dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    return target
