"""Calibration: the measured constants that turn work into time and power, each with its source and range."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import Field

from moiety.plan import Basis, Engine
from moiety.records import Record

Efficiency = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=100)]
RooflineKind = Literal[
    "dense_gemm",
    "grouped_gemm_prefill",
    "grouped_gemm_decode",
    "attention_prefill",
    "attention_decode_gqa",
    "attention_decode_mla",
    "attention_linear",
    "memory_pass",
]


class Sourced(Record):
    """Constants with what they rest on."""

    basis: Basis
    source: str
    range: str = ""


class Roofline(Sourced):
    """`t = overhead + (tc^p + tm^p)^(1/p)`, tc = FLOPs / (efficiency x peak), tm = bytes / (efficiency x bandwidth)."""

    compute_efficiency: Efficiency
    memory_efficiency: Efficiency
    overhead_s: Seconds
    exponent: Annotated[float, Field(ge=1)]
    row_block: Annotated[int, Field(gt=0)]
    """Rows that the kernel rounds each group's rows up to."""


class CollectiveConstants(Sourced):
    """Ring collectives inside one domain of links, by group size; and over the network between domains."""

    group_sizes: tuple[int, ...]
    latency_s: tuple[Seconds, ...]
    link_efficiency: tuple[Efficiency, ...]
    small_latency_s: Seconds
    small_bytes: int
    mid_bytes: int
    large_bytes: int
    large_efficiency: Efficiency
    in_network_gain: Annotated[float, Field(ge=1)]
    """How much faster a large all-reduce is where the switch of the domain reduces (NVLink SHARP)."""
    network_latency_s: Seconds
    network_efficiency: Efficiency


class ExchangeConstants(Sourced):
    """Dispatch and combine: start-up time and the share of the links' bandwidth that they reach."""

    dispatch_latency_s: Seconds
    combine_latency_s: Seconds
    combine_latency_wide_s: Seconds
    wide_ranks: int
    domain_dispatch_latency_s: Seconds
    domain_combine_latency_s: Seconds
    domain_efficiency: Efficiency
    network_efficiency: Efficiency
    decode_network_efficiency: Efficiency
    communication_sms: Annotated[int, Field(ge=0)]
    """SMs that dispatch and combine take from computation in prefill and training."""
    decode_communication_sms: Annotated[int, Field(ge=0)]


class EngineConstants(Sourced):
    """What a serving engine adds to the kernels."""

    step_overhead_s: Seconds
    request_overhead_s: Seconds
    reserve_bytes: Annotated[int, Field(ge=0)]
    """Memory for the driver's context, captured graphs and the libraries' workspaces."""


class PowerCurve(Record):
    """`base + compute x MFU + memory x MBU` watts."""

    base_w: float
    compute_w: float
    memory_w: float


class PowerConstants(Sourced):
    """Power of a GPU of `reference_max_power_w`; others are scaled by their maximum power."""

    reference_max_power_w: float
    dense: PowerCurve
    moe: PowerCurve
    clock_exponent: float


class Calibration(Record):
    """All constants of the cost model."""

    name: str
    roofline: dict[RooflineKind, Roofline]
    collectives: CollectiveConstants
    expert_exchange: ExchangeConstants
    engines: dict[Engine, EngineConstants]
    power: PowerConstants


DEFAULT_CALIBRATION = "published-2026-11"


@cache
def load_calibration(name: str = DEFAULT_CALIBRATION) -> Calibration:
    """Return a calibration of the catalogue."""
    text = files("moiety.catalog").joinpath(f"calibration/{name}.json").read_text(encoding="utf-8")
    return Calibration.model_validate(json.loads(text))
