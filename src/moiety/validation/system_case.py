"""What the cost model says of rows that are no serving runs: kernels, transfers, throughput, training, power."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moiety.validation.kernel_case import predict_kernel
from moiety.validation.moe_layer_case import MOE_LAYER, predict_moe_layer
from moiety.validation.offline_case import predict_offline
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
        raise SkippedRow("the configuration is stated in part only (tier B)")
    if row.kind == "kernel":
        return predict_moe_layer(row) if MOE_LAYER.match(row.model) else predict_kernel(row)
    if row.kind == "comm":
        return predict_transfer(row)
    if row.kind == "e2e" and row.phase == "mixed" and row.batch == _ALL_QUEUED:
        return predict_offline(row)
    if row.kind == "e2e" and row.phase == "training":
        return predict_training(row)
    if row.kind == "energy":
        return predict_power(row)
    raise SkippedRow(f"{row.kind} rows of this form are not predicted")


_ALL_QUEUED = "max load (all requests queued)"
