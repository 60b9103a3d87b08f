"""The back ends of a rank's expert products, by name: what each needs, and which one a layer gets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from moiety.cost.workspaces import MOST_PAIRS
from moiety.errors import InputError
from moiety.runtime.block_scaled import BlockScaled, even_blocks
from moiety.runtime.experts.grouped import one_by_one, partial_outputs, suits_grouped_mm
from moiety.runtime.experts.libraries import (
    deep_gemm_obstacle,
    deep_gemm_product,
    flashinfer_obstacle,
    flashinfer_product,
)
from moiety.runtime.fp8 import BLOCK, triton_reads
from moiety.runtime.gates import known_gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.runtime.dispatch.wire import Rows
    from moiety.runtime.experts.weights import ExpertWeights
    from moiety.runtime.telemetry import Recorder

_TENSOR_CORE_DTYPES = torch.bfloat16, torch.float16


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to compute a rank's experts."""

    name: str
    outputs: Callable[[Rows, ExpertWeights, Recorder, int], torch.Tensor]
    """See `partial_outputs` of `grouped.py`, whose order of adding all keep."""
    obstacle: Callable[[ExpertWeights], str | None]
    """Why weights cannot be computed this way; None where they can."""
    is_preferred: Callable[[ExpertWeights], bool]
    """Whether a layer gets this way unless told otherwise, where nothing is in its way."""
    has_gradients: bool = True
    """Whether gradients come back through it."""
    takes_codes: bool = False
    """Whether it computes weights that are held in FP8, or MXFP4 if it expands them ..."""
    expands_codes: bool = False
    """... one matrix of them at a time, expanded into memory of the step."""
    stays_on_device: bool = False
    """Whether nothing waits for the device where all slots of the rows are here (`Rows.all_here`)."""
    most_fixed: int = 0
    """Pairs of a row and a slot up to which the shapes of all tensors on the way follow from those of the arguments."""


def backend_for(weights: ExpertWeights, name: str | None = None, *, trains: bool = False) -> Backend:
    """Return the back end called `name`, or the first in the table that suits the weights and, if it trains, training.

    Raises InputError for a name that is not in the table, or whose back end cannot compute or train these weights.
    """
    if name is None:
        known = (each for each in BACKENDS.values() if each.has_gradients or not trains)
        return next(each for each in known if each.is_preferred(weights) and _obstacle(each, weights) is None)
    if name not in BACKENDS:
        raise InputError(f"a back end of experts is one of {', '.join(BACKENDS)}", field="expert_backend", value=name)
    reason = _obstacle(BACKENDS[name], weights)
    if trains and not BACKENDS[name].has_gradients:
        reason = "no gradients come back through it"
    if reason is not None:
        raise InputError(reason, field="expert_backend", value=name, remedy="leave the choice to Moiety")
    return BACKENDS[name]


def _obstacle(backend: Backend, weights: ExpertWeights) -> str | None:
    if weights.is_in_codes and not backend.takes_codes:
        return "it takes no weights that are held in FP8 or MXFP4"
    return backend.obstacle(weights)


def _triton_outputs(rows: Rows, weights: ExpertWeights, recorder: Recorder, layer: int) -> torch.Tensor:
    from moiety.runtime.experts.fused import fused_outputs  # noqa: PLC0415 - Triton is imported where it is used

    return fused_outputs(rows, weights, recorder, layer)


def _triton_obstacle(weights: ExpertWeights) -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed"
    if weights.gate_up.device.type != "cuda" and not _is_interpreted():
        return "Triton's kernels run on GPUs"
    if known_gate(weights.gate) is None:
        return "Triton's kernels know two gates, silu(gate) * up and gpt-oss's"
    return _fp8_obstacle(weights)


def _fp8_obstacle(weights: ExpertWeights) -> str | None:
    """Return why Triton's kernels cannot compute weights as they are held in FP8; None where they are not, or can."""
    held = [each for each in (weights.gate_up, weights.down) if isinstance(each, BlockScaled)]
    if any(each.has_pairs for each in held):
        return "Triton's kernels take no weights that are held in MXFP4"
    if any(even_blocks(each.row_bounds) is None for each in held):
        return f"Triton's kernels take FP8 in blocks of one size, {BLOCK} or more, along what is summed over"
    if held and held[0].device.type == "cuda" and not triton_reads(held[0].device):
        return "Triton's kernels read FP8 on GPUs of compute capability 8.9 and above"
    return None


def _grouped_mm_obstacle(weights: ExpertWeights) -> str | None:
    return None if suits_grouped_mm(weights) else "torch's grouped product takes rows of multiples of 16 bytes"


def _is_interpreted() -> bool:
    from moiety.runtime.kernels.configs import INTERPRETED  # noqa: PLC0415 - as above

    return INTERPRETED


def _suits_tensor_cores(weights: ExpertWeights) -> bool:
    return weights.gate_up.device.type == "cuda" and weights.gate_up.dtype in _TENSOR_CORE_DTYPES


BACKENDS = {
    each.name: each
    for each in (
        Backend(
            "triton",
            _triton_outputs,
            _triton_obstacle,
            _suits_tensor_cores,
            has_gradients=False,
            takes_codes=True,
            stays_on_device=True,
        ),
        Backend("grouped_mm", partial_outputs, _grouped_mm_obstacle, lambda _: True, most_fixed=MOST_PAIRS),
        Backend(
            "matmul",
            partial(partial_outputs, multiply=one_by_one),
            lambda _: None,
            lambda _: True,
            takes_codes=True,
            expands_codes=True,
            most_fixed=MOST_PAIRS,
        ),
        Backend(
            "flashinfer",
            partial(partial_outputs, multiply=flashinfer_product),
            flashinfer_obstacle,
            lambda _: False,
            has_gradients=False,
        ),
        Backend(
            "deep_gemm",
            partial(partial_outputs, multiply=deep_gemm_product),
            deep_gemm_obstacle,
            lambda _: False,
            has_gradients=False,
        ),
    )
}
"""In the order of preference; libraries compute a layer only where they are asked for by name."""
