"""A serving measurement: what ran where, under which load, and the latencies that were seen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Degree = Annotated[int, Field(gt=0, le=1_048_576)]
Milliseconds = Annotated[float, Field(gt=0, le=1e9)]
Tokens = Annotated[int, Field(gt=0, le=100_000_000)]


class _Row(BaseModel):
    """Rows come from other people's tools: what is not known here is let be, what is known must be right."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Degrees(_Row):
    """Degrees of parallelism of one worker: `tp x attention_dp = moe_tp x moe_ep` GPUs a pipeline stage."""

    tp: Degree | None = None
    pp: Degree | None = None
    attention_dp: Degree | None = None
    moe_tp: Degree | None = None
    moe_ep: Degree | None = None

    @property
    def worker_gpus(self) -> int:
        """GPUs of one worker."""
        return (self.tp or 1) * (self.attention_dp or 1) * (self.pp or 1)


class Workers(Degrees):
    """Equal workers of one kind, and how each is divided."""

    workers: Degree | None = None
    """Workers of this kind; not stated, as many as the row's GPUs hold."""
    max_sequences: Degree | None = None
    """Sequences that each attention group of the worker may run at a time."""


class ServingLatencies(_Row):
    """Mean latencies over the run, in milliseconds."""

    ttft_ms: Milliseconds | None = None
    tpot_ms: Milliseconds | None = None


class ServingRow(Degrees):
    """One run of a serving engine in a closed loop of `concurrency` requests.

    A worker's degrees stand in the row itself (`agg`), or in `prefill` and `decode` (`disagg`).
    """

    id: str
    model: Annotated[str, Field(min_length=1)]
    system: Annotated[str, Field(min_length=1)]
    backend: Annotated[str, Field(min_length=1)]
    mode: Literal["agg", "disagg"]
    measured: ServingLatencies
    source: str = ""
    num_gpus: Degree | None = None
    backend_version: str | None = None
    precision: Literal["bf16", "fp16", "fp8", "fp4"] | None = None
    isl: Tokens | None = None
    osl: Tokens | None = None
    exact_lengths: bool = False
    """Every request has all tokens stated, also where published runs of these lengths drew them."""
    concurrency: Degree | None = None
    draft_tokens: Annotated[int, Field(ge=0, le=64)] | None = None
    """Tokens that are guessed for each sequence and checked in a step (speculative decoding)."""
    prefill: Workers | None = None
    decode: Workers | None = None


class Deployment(_Row):
    """A deployment as its operators published it; an aggregated one has `decode` only."""

    model: str
    system: str
    backend: str
    version: str
    precision: str
    isl: Tokens
    osl: Tokens
    concurrency: tuple[Degree, ...]
    """Requests in flight that it was run with."""
    prefill: Workers | None = None
    decode: Workers
    draft_tokens: int


class Deployments(_Row):
    """A catalogue of deployments."""

    source: str
    """Where they were published."""
    deployments: tuple[Deployment, ...]
