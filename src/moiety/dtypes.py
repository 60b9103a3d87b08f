"""Number formats and their size in memory, scales of block formats included."""

from __future__ import annotations

from typing import Literal

Dtype = Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4", "fp4", "mxfp4"]

BYTES_PER_ELEMENT: dict[Dtype, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0 + 4.0 / (128 * 128),  # an FP32 scale per 128 x 128 block of weights (DeepSeek-V3 checkpoints)
    "int8": 1.0,
    "int4": 0.5 + 2.0 / 128,  # an FP16 scale per group of 128 (GPTQ, AWQ)
    "fp4": 0.5 + 1.0 / 16,  # NVFP4: an FP8 scale per 16
    "mxfp4": 0.5 + 1.0 / 32,  # OCP MX: an E8M0 scale per 32
}
"""Of weights, and of all that has no scales."""
HELD_BLOCK: dict[Dtype, tuple[int, int]] = {"fp8": (128, 128), "mxfp4": (1, 32)}
"""Formats that ranks hold weights in as codes with scales; of how many rows and columns of a matrix a scale is."""
ROW_BYTES_PER_ELEMENT: dict[Dtype, float] = {**BYTES_PER_ELEMENT, "fp8": 1.0 + 4.0 / 128}
"""Of rows of tokens, which are quantised one by one: in FP8 an FP32 scale per 128 values of a row (DeepEP)."""
CACHE_BYTES_PER_ELEMENT: dict[Dtype, float] = {**BYTES_PER_ELEMENT, "fp8": 1.0}
"""Of KV caches: FP8 has a static scale, as vLLM's default."""
