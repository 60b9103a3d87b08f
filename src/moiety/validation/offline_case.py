"""Offline runs: every request is there from the start, and what counts is tokens a second (TensorRT-LLM's tables)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.calibration.serving_catalog import load_serving
from moiety.projection.serving import offline_sequences, offline_throughput
from moiety.validation.predict import ServingPredictor
from moiety.validation.serving_case import row_model, serving_case
from moiety.validation.skipped import SkippedRow
from moiety.validation.stated import deployment, timed

if TYPE_CHECKING:
    from moiety.validation.serving_case import ServingCase
    from moiety.validation.serving_row import ServingRow
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
_DATA_PARALLEL = ("docs/source/performance/perf-overview.md",)
"""Pages that run all mixtures with `enable_attention_dp` (`llm_options.yml`) and label them by TP alone."""


def predict_offline(row: SystemRow) -> dict[str, float]:
    """Return output tokens a second of an offline row."""
    case, requests = _offline_case(row)
    pool = ServingPredictor(load_serving()).pool(case, case.decode)
    rate = offline_throughput(pool, requests)
    return {"output_tok_s_total": rate, "output_tok_s_per_gpu": rate / (row.n_gpus or 1)}


def as_closed_loop(row: SystemRow) -> ServingRow:
    """Return an offline row as a closed loop of the sequences that run at a time, with the time per token measured."""
    rate = row.metric("output_tok_s_total")
    if row.kind != "e2e" or row.tier != "A" or not rate:
        raise SkippedRow("it is no offline run")
    case, requests = _offline_case(row)
    pool = ServingPredictor(load_serving()).pool(case, case.decode)
    running = offline_sequences(pool, requests) * pool.num_groups
    lengths = case.input_tokens, case.output_tokens
    loop = deployment(_with_attention(row), "trtllm", round(running), *lengths, _release(row))
    return timed(loop, 1e3 * running / rate)


def _offline_case(row: SystemRow) -> tuple[ServingCase, int | None]:
    """Return what ran, and how many requests of it."""
    if not row.isl or not row.osl:
        raise SkippedRow("the lengths are not stated")
    case = serving_case(deployment(_with_attention(row), "trtllm", 1, row.isl, row.osl, _release(row)))
    return case, _REQUESTS.get((round(row.isl), round(row.osl)))


def _with_attention(row: SystemRow) -> SystemRow:
    """Return a row; where its label divides the experts alone, with attention as its page has it: data parallel."""
    gpus = row.n_gpus or 1
    if gpus == 1 or row.parallel.get("ep") is not None or row_model(row.model).moe is None:
        return row
    if not any(page in row.source for page in _DATA_PARALLEL):
        raise SkippedRow("how the experts are divided is not stated")
    return row.model_copy(update={"parallel": {"tp": 1, "dp": gpus, "moe_tp": gpus, "ep": 1}})


def _release(row: SystemRow) -> str | None:
    """Return the release that a row's table belongs to, None where it is not known."""
    return next((known for page, known in _RELEASES.items() if page in row.source), None)
