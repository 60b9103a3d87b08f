"""A serving measurement: what ran where, under which load, and the latencies that were seen."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from moiety.validation.published_names import weight_format


def _is_a_number(value: object) -> object:
    if isinstance(value, bool):
        msg = "must be a number, not true or false"
        raise ValueError(msg)  # noqa: TRY004 - pydantic reports ValueError only
    return value


Number = BeforeValidator(_is_a_number)
"""Of a field that takes numbers: true is not 1."""
MOST_RANKS = 1_048_576
Degree = Annotated[int, Field(gt=0, le=MOST_RANKS), Number]
Milliseconds = Annotated[float, Field(gt=0, le=1e9), Number]
Tokens = Annotated[int, Field(gt=0, le=100_000_000), Number]
_NOT_STATED = {"", "n/a", "na", "nan", "none", "null", "unknown"}
"""What tools write where a field has no value."""
NOTHING_BETWEEN = "osl = 1: one output token has no time per output token"
_MODES = {"aggregated": "agg", "disaggregated": "disagg"}


def states(value: object) -> bool:
    """Return whether a field's value says anything: tools write NaN, or a word for nothing, where it does not."""
    if isinstance(value, float):
        return not math.isnan(value)
    return value is not None and not (isinstance(value, str) and value.strip().lower() in _NOT_STATED)


class Row(BaseModel):
    """Rows come from other people's tools: what is not known here is let be, what is known must be right."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_not_stated(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in cast("dict[str, Any]", data).items() if states(value)}


class Degrees(Row):
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


class ServingLatencies(Row):
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
    precision: str | None = None
    """Of the weights: the format that the row's word stands for; or that word, where none is known for it."""
    isl: Tokens | None = None
    osl: Tokens | None = None
    exact_lengths: bool = False
    """Every request has all tokens stated, also where published runs of these lengths drew them."""
    concurrency: Degree | None = None
    draft_tokens: Annotated[int, Field(ge=0, le=64), Number] | None = None
    """Tokens that are guessed for each sequence and checked in a step (speculative decoding)."""
    frontends: Annotated[int, Field(ge=1, le=10_000), Number] | None = None
    """Routers before the decoding workers, each of which sends its requests to one after the other."""
    prefill: Workers | None = None
    decode: Workers | None = None

    @field_validator("precision")
    @classmethod
    def _is_a_format(cls, value: str | None) -> str | None:
        return (weight_format(value) or value) if value is not None else None

    @property
    def gpus_apart(self) -> int | None:
        """GPUs of the workers of both kinds as they are labelled; None where it is not stated how many there were."""
        prefill, decode = self.prefill, self.decode
        if prefill is None or decode is None or prefill.workers is None or decode.workers is None:
            return None
        return prefill.workers * prefill.worker_gpus + decode.workers * decode.worker_gpus

    @property
    def latencies(self) -> ServingLatencies:
        """Those measured that its requests have: an answer of one token has no time per output token."""
        return self.measured.model_copy(update={"tpot_ms": None}) if self.osl == 1 else self.measured

    def counted_once(self) -> Self:
        """Return the row with the GPUs of its worker counted once.

        Of an aggregated row moe_tp = moe_ep = n on n x n GPUs counts the worker's n GPUs twice, and so does
        tp = attention_dp = n with moe_ep = n x n; `num_gpus` of n x n then says no more. A disaggregated row with such
        degrees has the right GPUs: what it states of the decoding worker's experts is the prefill worker's.
        """
        tp, attn_dp, moe_tp, moe_ep = (each or 1 for each in (self.tp, self.attention_dp, self.moe_tp, self.moe_ep))
        if self.mode == "agg" and moe_tp == moe_ep > 1 and tp * attn_dp == moe_tp * moe_ep:
            tp, attn_dp = (moe_ep, 1) if attn_dp == 1 else (1, moe_ep)
        elif self.mode == "agg" and tp == attn_dp > 1 and moe_ep == tp * attn_dp:
            attn_dp = 1
        else:
            return self
        degrees = {"tp": tp, "attention_dp": attn_dp, "moe_tp": 1, "moe_ep": tp * attn_dp}
        return self.model_copy(update=degrees | ({"num_gpus": None} if self.num_gpus == self.worker_gpus else {}))

    @model_validator(mode="before")
    @classmethod
    def _has_a_mode(cls, data: object) -> object:
        """Return a row with its mode: that of one with workers of both kinds is known also where it is not stated."""
        if not isinstance(data, dict):
            return data
        row = cast("dict[str, Any]", data)
        mode = row.get("mode")
        if not states(mode):
            return row | {"mode": "disagg" if states(row.get("prefill")) and states(row.get("decode")) else "agg"}
        return row | {"mode": _MODES.get(mode.lower(), mode.lower())} if isinstance(mode, str) else row


class Deployment(Row):
    """A deployment as its operators published it; an aggregated one has `decode` only."""

    model: str
    system: str
    backend: str
    version: str | None = None
    """As rows of the deployment state it; None: they state no release."""
    release: str | None = None
    """The release that the scripts fetched, where rows state none."""
    precision: str
    isl: Tokens
    osl: Tokens
    concurrency: tuple[Degree, ...]
    """Requests in flight that it was run with."""
    prefill: Workers | None = None
    decode: Workers
    draft_tokens: int
    frontends: Degree = 1
    """Routers before the decoding workers."""

    @property
    def num_gpus(self) -> int:
        """GPUs of all workers; of an aggregated deployment, of one."""
        if self.prefill is None:
            return self.decode.worker_gpus
        return sum(each.worker_gpus * (each.workers or 1) for each in (self.prefill, self.decode))


class Deployments(Row):
    """A catalogue of deployments."""

    source: str
    """Where they were published."""
    deployments: tuple[Deployment, ...]
