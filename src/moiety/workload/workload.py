"""Workload: what the deployment has to do, and how well."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moiety.records import Record

WorkloadKind = Literal["prefill", "decode", "mixed", "training"]
Tokens = Annotated[int, Field(gt=0, le=100_000_000)]


class ServiceObjective(Record):
    """Latency that a request must not exceed on average; None: no limit."""

    ttft_s: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Time to the first token."""
    tpot_s: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Time per output token after the first."""


class Workload(Record):
    """Work for the whole cluster.

    - `prefill`: prompts of `input_tokens`, `tokens_in_flight` of them in one step over all replicas.
    - `decode`: `concurrency` sequences, each `input_tokens` long and growing by `output_tokens`.
    - `mixed`: requests of `input_tokens` in and `output_tokens` out, `concurrency` in flight or arriving at
      `request_rate_per_s`.
    - `training`: sequences of `input_tokens`, `tokens_in_flight` in one optimizer step.
    """

    name: str
    kind: WorkloadKind
    input_tokens: Tokens
    output_tokens: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    tokens_in_flight: Annotated[int, Field(gt=0, le=10**12)] | None = None
    concurrency: Annotated[int, Field(gt=0, le=10**9)] | None = None
    request_rate_per_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    slo: ServiceObjective = ServiceObjective()
    routing_skew: Annotated[float, Field(ge=0, le=4)] = 0.0
    """Exponent s of a Zipf law over the experts' loads (load of the i-th ~ i^-s); 0: uniform."""
    shortest_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Lengths are drawn uniformly between this share of the longest and all of it, around means of `input_tokens` and
    `output_tokens`; 1: all requests are equally long, so that those that begin together end together."""
    source: str = ""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        loads = {
            "prefill": ("tokens_in_flight", "concurrency"),
            "decode": ("concurrency",),
            "mixed": ("concurrency", "request_rate_per_s"),
            "training": ("tokens_in_flight",),
        }[self.kind]
        given = [
            name
            for name in ("tokens_in_flight", "concurrency", "request_rate_per_s")
            if getattr(self, name) is not None
        ]
        if len(given) != 1 or given[0] not in loads:
            msg = f"a {self.kind} workload needs exactly one of {', '.join(loads)}; it has {', '.join(given) or 'none'}"
            raise ValueError(msg)
        if self.kind in {"decode", "mixed"} and self.output_tokens == 0:
            msg = f"a {self.kind} workload needs output_tokens of at least 1"
            raise ValueError(msg)
        return self

    @property
    def tokens_per_batch(self) -> int:
        """Prompt tokens in flight over the whole cluster (prefill, training)."""
        return self.tokens_in_flight or (self.concurrency or 0) * self.input_tokens

    @property
    def decode_context_tokens(self) -> int:
        """Mean number of tokens in the cache of a sequence that is being decoded."""
        return self.input_tokens + self.output_tokens // 2
