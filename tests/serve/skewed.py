"""A tiny model whose router goes by the token: the first half of the vocabulary has other experts than the second."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from tests.runtime.checkpoints import save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

HALF = 65
"""Token ids below are of the first half."""
EXPERTS = ((0, 1, 2), (4, 5, 6))
"""Those that the tokens of each half choose: three of eight, all on one of two ranks when experts lie in order."""


def skewed_checkpoint(folder: Path) -> Path:
    """Save the model in a folder."""
    save_checkpoint("qwen3_moe", folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    embedding = tensors["model.embed_tokens.weight"]
    width = embedding.shape[1] // 2
    embedding[:HALF, :width] += 2.0
    embedding[HALF:, width:] += 2.0
    for name, gate in tensors.items():
        if name.endswith("mlp.gate.weight"):
            gate[EXPERTS[0], :width] += 1.0
            gate[EXPERTS[1], width:] += 1.0
    save_file({name: each.to(torch.float32).contiguous() for name, each in tensors.items()}, file, {"format": "pt"})
    return folder
