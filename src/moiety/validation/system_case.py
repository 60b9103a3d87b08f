"""What the cost model says of rows that are no serving runs: kernels, transfers, throughput, training, power."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moiety.calibration.catalog import calibration_for
from moiety.calibration.serving_catalog import load_serving
from moiety.cost.roofline import compute_seconds
from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.op import AttentionCore, Gemm
from moiety.projection.serving import offline_throughput
from moiety.validation.power_case import predict_power
from moiety.validation.predict import ServingPredictor
from moiety.validation.serving_case import SkippedRow, serving_case
from moiety.validation.stated import batch, deployment, metric
from moiety.validation.training_case import predict_training
from moiety.validation.transfer_case import predict_transfer, row_device

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.validation.system_row import SystemRow

DENSE_GEMM = re.compile(r"dense GEMM M(\d+) N(\d+) K(\d+)$")
_GROUPED = re.compile(r"grouped GEMM (\d+) experts h(\d+) i(\d+)")
_GQA = re.compile(r"GQA decode (\d+)q/(\d+)kv d(\d+)$")
_MLA = re.compile(r"FlashMLA/FlashInfer MLA decode h(\d+)$")
_LATENT, _VALUE = 576, 512
"""Elements of a cached latent with its rope part, and of those that values are read from (DeepSeek)."""


def system_group(row: SystemRow) -> dict[str, str]:
    """Return what the row is grouped by; the shapes of kernels are no models."""
    family = re.match(r"[A-Za-z_/ ]+", row.model) if row.kind in {"kernel", "comm"} else None
    model = family[0].strip() if family else row.model
    return {"model": model, "system": row.hardware, "phase": row.phase or "not stated", "kind": row.kind}


def predict_system(row: SystemRow) -> dict[str, float]:
    """Return the predicted metrics of a row; raise SkippedRow with the reason where there are none."""
    if row.tier != "A":
        raise SkippedRow("the configuration is stated in part only (tier B)")
    if row.kind == "kernel":
        for pattern, predicted in _KERNELS:
            match = pattern.match(row.model)
            if match:
                return predicted(row, tuple(int(part) for part in match.groups()))
    if row.kind == "comm":
        return predict_transfer(row)
    if row.kind == "e2e" and row.phase == "mixed" and row.batch == _ALL_QUEUED:
        return _offline(row)
    if row.kind == "e2e" and row.phase == "training":
        return predict_training(row)
    if row.kind == "energy":
        return predict_power(row)
    raise SkippedRow(f"{row.kind} rows of this form are not predicted")


_ALL_QUEUED = "max load (all requests queued)"


def _microseconds(row: SystemRow, work: Gemm | AttentionCore) -> float:
    device = row_device(row)
    return compute_seconds(work, device, calibration_for(device.architecture)) * 1e6


def _dense(row: SystemRow, shape: tuple[int, ...]) -> dict[str, float]:
    m, n, k = shape
    us = _microseconds(row, dense_product(m, n, k))
    return {"us": us, "tflops": 2e-6 * m * n * k / us}


def dense_product(m: int, n: int, k: int) -> Gemm:
    """Return the product that the measured kernels compute: FP8 operands, a result in BF16."""
    return Gemm(m, n, k, "fp8", "bf16")


def _grouped(row: SystemRow, shape: tuple[int, ...]) -> dict[str, float]:
    """Return the two products of all experts a GPU holds; each expert gets `tokens_per_expert` rows."""
    experts, hidden, width = shape
    rows = metric(row, "tokens_per_expert") * experts
    if not rows:
        raise SkippedRow("tokens_per_expert is not stated")
    up = Gemm(rows, 2 * width, hidden, "fp8", "fp8", experts, experts=True)
    down = Gemm(rows, hidden, width, "fp8", "fp8", experts, experts=True)
    return {"up_us": _microseconds(row, up), "down_us": _microseconds(row, down)}


def _gqa_decode(row: SystemRow, shape: tuple[int, ...]) -> dict[str, float]:
    heads, kv_heads, dim = shape
    sequences, seen = batch(row), row.isl or 0
    flops = 4.0 * sequences * seen * heads * dim
    moved = 2.0 * (2 * sequences * seen * kv_heads * dim + 2 * sequences * heads * dim)
    return {"us": _microseconds(row, AttentionCore("decode", "gqa", flops, moved, "bf16"))}


def _mla_decode(row: SystemRow, shape: tuple[int, ...]) -> dict[str, float]:
    heads, sequences, seen = shape[0], batch(row), row.isl or 0
    flops = 2.0 * sequences * seen * heads * (_LATENT + _VALUE)
    moved = BYTES_PER_ELEMENT["bf16"] * (sequences * seen * _LATENT + sequences * heads * (_LATENT + _VALUE))
    return {"us": _microseconds(row, AttentionCore("decode", "mla", flops, moved, "bf16"))}


_KERNELS: tuple[tuple[re.Pattern[str], Callable[[SystemRow, tuple[int, ...]], dict[str, float]]], ...] = (
    (DENSE_GEMM, _dense),
    (_GROUPED, _grouped),
    (_GQA, _gqa_decode),
    (_MLA, _mla_decode),
)


def _offline(row: SystemRow) -> dict[str, float]:
    """Return output tokens a second when all requests are there from the start."""
    if not row.isl or not row.osl:
        raise SkippedRow("the lengths are not stated")
    case = serving_case(deployment(row, "trtllm", 1, row.isl, row.osl))
    if (row.parallel.get("ep") is None) and case.model.moe is not None:
        raise SkippedRow("how the experts are divided is not stated")
    rate = offline_throughput(ServingPredictor(load_serving()).pool(case, case.decode))
    return {"output_tok_s_total": rate, "output_tok_s_per_gpu": rate / (row.n_gpus or 1)}
