"""What the cost model says of rows that are no serving runs: kernels, transfers, throughput, training, power."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moiety.validation.kernel_case import predict_kernel
from moiety.validation.moe_layer_case import MOE_LAYER, predict_moe_layer
from moiety.validation.offline_case import predict_offline
from moiety.validation.phase_case import PHASES, predict_phase
from moiety.validation.power_case import predict_power
from moiety.validation.skipped import SkippedRow
from moiety.validation.training_case import predict_training
from moiety.validation.transfer_case import predict_transfer

if TYPE_CHECKING:
    from moiety.validation.system_row import SystemRow


def system_group(row: SystemRow) -> dict[str, str]:
    """Return what the row is grouped by; the shapes of kernels are no models."""
    family = re.match(r"[A-Za-z_/ ]+", row.model) if row.kind in {"kernel", "comm"} else None
    model = family[0].strip() if family else row.model
    return {"model": model, "system": row.hardware, "phase": row.phase or "not stated", "kind": row.kind}


def predict_system(row: SystemRow) -> dict[str, float]:
    """Return the predicted metrics of a row; raise SkippedRow with the reason where there are none."""
    if row.tier != "A":
        raise SkippedRow(_partly_stated(row))
    if row.kind == "kernel":
        return predict_moe_layer(row) if MOE_LAYER.match(row.model) else predict_kernel(row)
    if row.kind == "comm":
        return predict_transfer(row)
    if row.kind == "e2e" and row.phase == "mixed" and row.batch == _ALL_QUEUED:
        return predict_offline(row)
    if row.kind == "e2e" and row.phase == "training":
        return predict_training(row)
    if row.kind == "e2e" and row.phase in PHASES:
        return predict_phase(row)
    if row.kind == "energy":
        return predict_power(row)
    raise SkippedRow(_missing(row))


def _partly_stated(row: SystemRow) -> str:
    """Return why a row counts as stated in part only."""
    if "mlcommons" in row.source:
        return _MLPERF
    if "holds the same numbers" in row.notes:
        return "one table of figures stands under two devices' names"
    return "the configuration is stated in part only (tier B)"


def _missing(row: SystemRow) -> str:
    """Return what a row lacks, or the cost model."""
    reasons = (
        (row.kind == "latency", "which devices and cards a bare link joins is not stated"),
        (
            row.kind == "overlap",
            "forward and backward chunks that a pipeline runs together (DualPipe) are not modelled",
        ),
        ("mlcommons" in row.source, _MLPERF),
        (row.phase == "ablation", "ratios between runs whose loads are not stated"),
        ("ShareGPT" in (row.batch or ""), "the lengths of the requests are not stated (ShareGPT)"),
        ("concurrency" in (row.batch or ""), "the engine's release is not stated"),
    )
    other = f"no law is for {row.kind} rows of phase {row.phase!r} and batch {row.batch!r}"
    return next((reason for holds, reason in reasons if holds), other)


_MLPERF = "an MLPerf summary states neither degrees nor lengths"
_ALL_QUEUED = "max load (all requests queued)"
