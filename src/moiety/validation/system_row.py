"""A measurement of anything but a serving run: a kernel, a transfer, power, throughput."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class SystemRow(BaseModel):
    """One measured point; what was measured stands in `metrics`, in the units that their names end in."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, coerce_numbers_to_str=True)

    id: str
    kind: Literal["e2e", "energy", "kernel", "comm", "latency", "overlap"]
    tier: Literal["A", "B"] = "A"
    """A: the configuration is complete; B: parts of it are not stated."""
    source: str = ""
    hardware: str
    n_gpus: Annotated[int, Field(gt=0, le=1_048_576)] | None = None
    model: str
    precision: str | None = None
    parallel: dict[str, Any] = Field(default_factory=dict)
    phase: str | None = None
    isl: float | None = None
    osl: float | None = None
    batch: str | None = None
    metrics: dict[str, float | str | None]
    notes: str = ""
