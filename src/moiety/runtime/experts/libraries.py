"""Grouped products of GPU libraries, where these are installed: FlashInfer's and DeepGEMM's.

Only products are taken from them: gate, weights and sums stay ours, so that the order of adding does. Interfaces as of
FlashInfer 0.6 (`flashinfer.gemm.SegmentGEMMWrapper`) and DeepGEMM 2 (`m_grouped_bf16_gemm_nt_contiguous`).
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from moiety.runtime.experts.grouped import suits_grouped_mm

if TYPE_CHECKING:
    from types import ModuleType

    from moiety.runtime.experts.weights import ExpertWeights

_SEGMENT_GEMM_CAPABILITY = 8
_SEGMENT_GEMM_WORKSPACE_BYTES = 128 << 20
"""What FlashInfer encourages; taken at the first product on a device, beside what the plan counts."""
_DEEP_GEMM_CAPABILITIES = 9, 10
_DEEP_GEMM_INNER = 64
"""What the inner sizes of DeepGEMM's BF16 products are multiples of."""
_DEEP_GEMM_PACKAGES = "deep_gemm", "vllm.third_party.deep_gemm"
"""By itself, and as vLLM's wheels bring it along."""


def flashinfer_obstacle(weights: ExpertWeights) -> str | None:
    """Return why FlashInfer cannot multiply by these weights; None where it can."""
    missing = _missing(
        "FlashInfer", _imported("flashinfer.gemm"), "SegmentGEMMWrapper", "pip install flashinfer-python"
    )
    if missing is not None:
        return missing
    if _capability(weights) < _SEGMENT_GEMM_CAPABILITY:
        return f"FlashInfer's grouped product runs on GPUs of compute capability {_SEGMENT_GEMM_CAPABILITY}.0 and above"
    if weights.gate_up.dtype not in {torch.bfloat16, torch.float16}:
        return f"FlashInfer's grouped product takes BF16 and FP16, and these weights are {weights.gate_up.dtype}"
    if not suits_grouped_mm(weights):
        return "FlashInfer's grouped product takes rows of multiples of 16 bytes"
    if not all(_is_dense(each) for each in weights.plain):
        return "FlashInfer's grouped product takes weights without gaps"
    return None


def flashinfer_product(rows: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the product of each slot's rows with its weights; see `Multiply` of `grouped.py`."""
    if rows.shape[0] == 0:
        return rows @ weights[0]
    first = torch.zeros(counts.shape[0] + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(counts, 0, out=first[1:])
    is_transposed = not weights.is_contiguous()
    stored = weights.transpose(1, 2) if is_transposed else weights
    product: torch.Tensor = _segment_gemm(rows.device).run(
        rows.contiguous(), stored, counts.shape[0], is_transposed, seg_indptr=first
    )
    return product


def deep_gemm_obstacle(weights: ExpertWeights) -> str | None:
    """Return why DeepGEMM cannot multiply by these weights; None where it can."""
    where = "build it, or install a vLLM wheel that brings it along"
    missing = _missing("DeepGEMM", _deep_gemm(), "m_grouped_bf16_gemm_nt_contiguous", where)
    if missing is not None:
        return missing
    if _capability(weights) not in _DEEP_GEMM_CAPABILITIES:
        known = " and ".join(f"{each}.x" for each in _DEEP_GEMM_CAPABILITIES)
        return f"DeepGEMM runs on GPUs of compute capability {known}"
    if weights.gate_up.dtype != torch.bfloat16:
        return f"DeepGEMM's grouped product takes BF16, and these weights are {weights.gate_up.dtype}"
    inner = weights.gate_up.shape[1], weights.down.shape[1]
    if any(each % _DEEP_GEMM_INNER for each in inner):
        return f"DeepGEMM takes inner sizes that are multiples of {_DEEP_GEMM_INNER}, and these are {inner}"
    if not all(each.transpose(1, 2).is_contiguous() for each in weights.plain):
        return "DeepGEMM takes weights stored as [experts, outer, inner]"
    return None


def deep_gemm_product(rows: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the same by DeepGEMM, for which every slot's rows are moved to where one of its row tiles begins."""
    if rows.shape[0] == 0:
        return rows @ weights[0]
    library: Any = _deep_gemm()
    aligned = int(library.get_mk_alignment_for_contiguous_layout())
    slot, place, room = aligned_places(counts, rows.shape[0], aligned)
    padded = rows.new_zeros(room, rows.shape[1]).index_copy_(0, place, rows)
    slots = torch.full((room,), -1, dtype=torch.int32, device=rows.device).index_copy_(0, place, slot.to(torch.int32))
    out = rows.new_empty(room, weights.shape[2])
    library.m_grouped_bf16_gemm_nt_contiguous(padded, weights.transpose(1, 2), out, slots)
    return out.index_select(0, place)


def aligned_places(counts: torch.Tensor, num_rows: int, aligned: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the slot of each row, where it lies if every slot begins at a multiple of `aligned`, and the room.

    `counts` [slots] are the rows of each slot, `num_rows` together. The room is the least that is enough for any
    counts of the same sum, so that nobody waits for the device to say them.
    """
    slots = torch.arange(counts.shape[0], device=counts.device)
    slot = slots.repeat_interleave(counts, output_size=num_rows)
    padded = (counts + aligned - 1) // aligned * aligned
    shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
    place = torch.arange(num_rows, device=counts.device) + shift[slot]
    fullest = min(counts.shape[0], num_rows)
    return slot, place, (num_rows + fullest * (aligned - 1)) // aligned * aligned


def _missing(name: str, library: ModuleType | str, function: str, remedy: str) -> str | None:
    """Return what is missing of a library that was looked for; None where its function is there."""
    if isinstance(library, str):
        return f"{name} cannot be used: {library} ({remedy})"
    return None if hasattr(library, function) else f"this {name} has no {function} ({remedy})"


@cache
def _imported(name: str) -> ModuleType | str:
    """Return a module, or why it cannot be imported: a library built for another torch fails in many ways."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        return f"no module named {error.name}"
    except Exception as error:  # noqa: BLE001 - whatever its own start-up raises is the reason
        return f"importing {name} failed: {error}"


@cache
def _deep_gemm() -> ModuleType | str:
    found = [_imported(name) for name in _DEEP_GEMM_PACKAGES]
    reasons = [each for each in found if isinstance(each, str)]
    return next((each for each in found if not isinstance(each, str)), "; ".join(reasons))


@cache
def _segment_gemm(device: torch.device) -> Any:  # noqa: ANN401 - the library's
    library: Any = _imported("flashinfer.gemm")
    return library.SegmentGEMMWrapper(torch.empty(_SEGMENT_GEMM_WORKSPACE_BYTES, dtype=torch.int8, device=device))


def _capability(weights: ExpertWeights) -> int:
    """Return the major compute capability of the GPU that holds the weights, 0 where none does."""
    device = weights.gate_up.device
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


def _is_dense(stacked: torch.Tensor) -> bool:
    return stacked.is_contiguous() or stacked.transpose(1, 2).is_contiguous()
