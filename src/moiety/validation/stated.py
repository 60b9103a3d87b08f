"""What a row that is no serving run states, as a serving row where it describes a deployment."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moiety.validation.published_names import weight_format
from moiety.validation.serving_row import ServingRow
from moiety.validation.skipped import SkippedRow
from moiety.validation.transfer_case import row_device

if TYPE_CHECKING:
    from moiety.validation.system_row import SystemRow


def batch(row: SystemRow) -> int:
    """Return the requests in flight; raise SkippedRow where they are not stated as a number."""
    if row.batch is None or not re.fullmatch(r"0*[1-9][0-9]{0,8}", row.batch):
        raise SkippedRow("the batch is not stated as a number")
    return int(row.batch)


def deployment(
    row: SystemRow,
    backend: str,
    concurrency: int,
    input_tokens: float,
    output_tokens: float,
    version: str | None = None,
) -> ServingRow:
    """Return the deployment that a row describes, as a serving row."""
    return ServingRow.model_validate(
        {
            "id": row.id,
            "source": row.source,
            "model": row.model,
            "system": row_device(row).name,
            "backend": backend,
            "backend_version": version,
            "mode": "agg",
            "measured": {},
            "num_gpus": row.n_gpus,
            "precision": weight_format(row.precision or ""),
            "isl": max(round(input_tokens), 1),
            "osl": max(round(output_tokens), 1),
            "exact_lengths": True,
            "concurrency": max(concurrency, 1),
            "tp": row.degree("attn_tp") or row.degree("tp") or 1,
            "attention_dp": row.degree("dp") or row.degree("attn_dp") or 1,
            "moe_tp": row.degree("moe_tp") or 1,
            "moe_ep": row.degree("ep") or 1,
        }
    )


def timed(row: ServingRow, tpot_ms: float) -> ServingRow:
    """Return a serving row with the time per output token that was measured."""
    return row.model_copy(update={"measured": row.measured.model_copy(update={"tpot_ms": tpot_ms})})
