# pyright: basic, reportAttributeAccessIssue=false
# Triton is untyped.
"""Tiles fetched by the tensor memory accelerator, which GPUs have from compute capability 9.0 on."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

LINE_BYTES = 16
"""What rows and their beginnings are multiples of, for the accelerator."""
_FIRST_WITH = 9
"""Compute capability."""


@cache
def has_tile_copies(device: torch.device) -> bool:
    """Return whether a GPU has the accelerator."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= _FIRST_WITH


def tiled(tensor: torch.Tensor) -> TensorDescriptor:
    """Return a descriptor of a contiguous tensor; `set_tile_sizes` says how large its tiles are."""
    line = [1] * (tensor.dim() - 1) + [LINE_BYTES]
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), line)


def set_tile_sizes(given: dict[str, Any]) -> None:
    """Give descriptors among a kernel's arguments the tiles that it is about to be run with.

    Gates and ups, [slots x 2, width, hidden], are fetched together.
    """
    sizes = {"middle": given["BLOCK_M"], "half_middle": given["BLOCK_M"] // 2, "weights": given["BLOCK_N"]}
    for name, rows in sizes.items():
        if isinstance(given.get(name), TensorDescriptor):
            pair = [2] * (len(given[name].shape) - 2)
            given[name].block_shape = [*pair, rows, given["BLOCK_K"]]
