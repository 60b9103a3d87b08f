"""Offline runs: every request is there from the start, and what counts is tokens a second (TensorRT-LLM's tables)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.calibration.serving_catalog import load_serving
from moiety.projection.serving import offline_sequences, offline_throughput
from moiety.validation.predict import ServingPredictor
from moiety.validation.serving_case import serving_case
from moiety.validation.serving_row import ServingRow
from moiety.validation.skipped import SkippedRow
from moiety.validation.transfer_case import row_device

if TYPE_CHECKING:
    from moiety.validation.serving_case import ServingCase
    from moiety.validation.system_row import SystemRow

_REQUESTS = {
    (128, 128): 30_000,
    (128, 2048): 3000,
    (128, 4096): 1500,
    (500, 2000): 3000,
    (1000, 1000): 3000,
    (1000, 2000): 1500,
    (1024, 1024): 3000,
    (1024, 8192): 1500,
    (1024, 32_768): 1000,
    (2048, 128): 3000,
    (2048, 2048): 1500,
    (5000, 500): 1500,
    (8192, 1024): 1500,
    (20_000, 2000): 1000,
    (32_768, 1024): 1000,
}
"""Requests of a run by the lengths of prompt and output (TensorRT-LLM, perf-overview.md, "Preparing a Dataset")."""
_RELEASES = {
    "docs/source/performance/perf-overview.md": "1.0.0",
    "docs/source/developer-guide/perf-overview.md": "1.2.0",
}
"""Releases that the tables belong to."""


def predict_offline(row: SystemRow) -> dict[str, float]:
    """Return output tokens a second of an offline row."""
    case, requests = _offline_case(row)
    pool = ServingPredictor(load_serving()).pool(case, case.decode)
    rate = offline_throughput(pool, requests)
    return {"output_tok_s_total": rate, "output_tok_s_per_gpu": rate / (row.n_gpus or 1)}


def as_closed_loop(row: SystemRow) -> ServingRow:
    """Return an offline row as a closed loop of the sequences that run at a time, with the time per token measured."""
    rate = row.metrics.get("output_tok_s_total")
    if row.kind != "e2e" or row.tier != "A" or not isinstance(rate, float):
        raise SkippedRow("it is no offline run")
    case, requests = _offline_case(row)
    pool = ServingPredictor(load_serving()).pool(case, case.decode)
    running = offline_sequences(pool, requests) * pool.num_groups
    loop = deployment_row(row, "trtllm", round(running), case.input_tokens, case.output_tokens)
    return loop.model_copy(update={"measured": loop.measured.model_copy(update={"tpot_ms": 1e3 * running / rate})})


def deployment_row(
    row: SystemRow, backend: str, concurrency: int, input_tokens: float, output_tokens: float
) -> ServingRow:
    """Return the deployment that a row describes, as a serving row."""
    parallel = row.parallel
    precision = {"bfloat16": "bf16", "mxfp4": "fp4"}.get(row.precision or "", row.precision)
    return ServingRow.model_validate(
        {
            "id": row.id,
            "source": row.source,
            "model": row.model,
            "system": row_device(row).name,
            "backend": backend,
            "backend_version": next((known for page, known in _RELEASES.items() if page in row.source), None),
            "mode": "agg",
            "measured": {},
            "num_gpus": row.n_gpus,
            "precision": precision if precision in {"bf16", "fp16", "fp8", "fp4"} else None,
            "isl": max(round(input_tokens), 1),
            "osl": max(round(output_tokens), 1),
            "concurrency": max(concurrency, 1),
            "tp": parallel.get("attn_tp") or parallel.get("tp") or 1,
            "attention_dp": parallel.get("dp") or 1,
            "moe_tp": parallel.get("moe_tp") or 1,
            "moe_ep": parallel.get("ep") or 1,
        }
    )


def _offline_case(row: SystemRow) -> tuple[ServingCase, int | None]:
    """Return what ran, and how many requests of it."""
    if not row.isl or not row.osl:
        raise SkippedRow("the lengths are not stated")
    case = serving_case(deployment_row(row, "trtllm", 1, row.isl, row.osl))
    if (row.n_gpus or 1) > 1 and row.parallel.get("ep") is None and case.model.moe is not None:
        raise SkippedRow("how the experts are divided is not stated")
    return case, _REQUESTS.get((round(row.isl), round(row.osl)))
