"""Workloads from YAML as people write it."""

from __future__ import annotations

from typing import get_args

from moiety.workload.workload import Workload, WorkloadKind
from moiety.yaml_text import Fields

WORKLOAD_FIELDS = (
    "name",
    "kind",
    "input_tokens",
    "output_tokens",
    "tokens_in_flight",
    "concurrency",
    "request_rate_per_s",
    "slo",
    "routing_skew",
    "shortest_share",
    "source",
)
_MAX_TOKENS = 100_000_000


def read_workload(text: str, *, source: str) -> Workload:
    """Return the workload that a YAML text describes.

    Raises InputError with the file, line and path of the first field that is wrong.
    """
    fields = Fields.parse(text, source=source, what="workload", known=WORKLOAD_FIELDS)
    values: dict[str, object] = {
        "name": fields.text("name"),
        "kind": fields.choice("kind", get_args(WorkloadKind)),
        "input_tokens": fields.integer("input_tokens", 1, _MAX_TOKENS),
        "output_tokens": fields.integer("output_tokens", 0, _MAX_TOKENS, default=0),
        "slo": _objective(fields),
        "routing_skew": fields.number("routing_skew", 0, 4, default=0),
        "shortest_share": fields.number("shortest_share", 1e-3, 1, default=1),
        "source": fields.text("source", ""),
    }
    if fields.has("tokens_in_flight"):
        values["tokens_in_flight"] = fields.integer("tokens_in_flight", 1, 10**12)
    if fields.has("concurrency"):
        values["concurrency"] = fields.integer("concurrency", 1, 10**9)
    if fields.has("request_rate_per_s"):
        values["request_rate_per_s"] = fields.number("request_rate_per_s", 1e-9, 1e9)
    return fields.build(Workload, values)


def _objective(fields: Fields) -> dict[str, float]:
    if not fields.has("slo"):
        return {}
    limits = fields.mapping("slo", ("ttft", "tpot"))
    return {f"{key}_s": limits.quantity(key, "s", 1e6) for key in ("ttft", "tpot") if limits.has(key)}
