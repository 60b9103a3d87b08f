"""Checkpoints of gpt-oss with experts in MXFP4, made of others, and what they stand for."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

GROUP = 32
_NUMBERS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""E2M1, by its code."""


def is_quantised(name: str) -> bool:
    """Return whether gpt-oss's checkpoints have a tensor in MXFP4."""
    return name.endswith(("experts.gate_up_proj", "experts.down_proj"))


def quantised_by_group(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes [..., groups, 32] and E8M0 scales [..., groups] of [..., columns].

    OCP Microscaling Formats 1.0, section 6.3: the exponent of the largest less that of E2M1's largest.
    """
    groups = values.float().unflatten(-1, (-1, GROUP))
    exponent = groups.abs().amax(-1).clamp(min=2.0**-100).log2().floor() - 2
    scaled = groups / torch.exp2(exponent)[..., None]
    nearest = (scaled.abs()[..., None] - _NUMBERS).abs().argmin(-1)
    return (nearest + 8 * (scaled < 0)).to(torch.uint8), (exponent + 127).to(torch.uint8)


def numbers_of(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return what codes and scales stand for, [..., columns] float32."""
    signed = torch.cat([_NUMBERS, -_NUMBERS])[codes.long()]
    return (signed * torch.exp2(scales.float() - 127)[..., None]).flatten(-2)


def save_mxfp4(folder: Path, target: Path) -> Path:
    """Save a checkpoint of gpt-oss with its experts in MXFP4, as OpenAI's are."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    (target / "config.json").write_text(json.dumps(config))
    file = target / "model.safetensors"
    tensors: dict[str, torch.Tensor] = {}
    for name, values in load_file(file).items():
        if is_quantised(name):
            codes, tensors[f"{name}_scales"] = quantised_by_group(values.mT)
            tensors[f"{name}_blocks"] = codes[..., 0::2] + (codes[..., 1::2] << 4)
        else:
            tensors[name] = values
    save_file(tensors, file)
    return target


def save_dequantised(folder: Path, target: Path) -> Path:
    """Save what `save_mxfp4` saves as plain numbers, in the format of the checkpoint that it is made of."""
    shutil.copytree(folder, target)
    file = target / "model.safetensors"
    tensors = load_file(file)
    for name, values in tensors.items():
        if is_quantised(name):
            tensors[name] = numbers_of(*quantised_by_group(values.mT)).mT.to(values.dtype).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    return target
