"""The kernel that some releases multiply experts with, few rows or many: facts of vLLM and DeepGEMM, not fitted.

vLLM computes experts in FP8 blocks with DeepGEMM's contiguous kernel where scales are powers of two, however few the
tokens (`TritonOrDeepGemmExperts`), and on Hopper they are by default since 0.11.1 (vllm-project/vllm, pull request
26197). Since 0.12 it does not where experts are divided over 8 GPUs (29346), and since 0.15 another kernel comes first
(32414). Of other devices it was not measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.calibration.catalog import load_calibration
from moiety.calibration.serving import release_number

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration, Engine
    from moiety.dtypes import Dtype

_SINCE, _UNTIL = (0, 11, 1), (0, 15, 0)
_FROM_EXPERT_TP = 8
_ROW_BLOCK = 128
"""DeepGEMM's `get_mk_alignment_for_contiguous_layout`."""


def has_contiguous_experts(engine: Engine, version: str, architecture: str, experts: Dtype, expert_tp: int) -> bool:
    """Return whether a release computes experts in a format, divided over so many GPUs, by the contiguous kernel."""
    number = release_number(version)
    return (
        (engine, architecture, experts) == ("vllm", "hopper", "fp8")
        and number is not None
        and _SINCE <= number < _UNTIL
        and expert_tp < _FROM_EXPERT_TP
    )


def with_contiguous_experts(calibration: Calibration) -> Calibration:
    """Return constants under which experts are computed by that kernel, as it was measured alone."""
    alone = load_calibration().roofline["grouped_gemm_prefill"]
    line = alone.model_copy(update={"row_block": _ROW_BLOCK, "row_spread": 0.0, "contiguous_layout": True})
    grouped = {"grouped_gemm_decode": line, "grouped_gemm_prefill": line}
    return calibration.model_copy(update={"roofline": {**calibration.roofline, **grouped}})
