"""A measurement of anything but a serving run: a kernel, a transfer, power, throughput."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from moiety.validation.serving_row import Row
from moiety.validation.skipped import SkippedRow

Length = Annotated[float, Field(gt=0, le=100_000_000)]


class SystemRow(Row):
    """One measured point; what was measured stands in `metrics`, in the units that their names end in."""

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
    isl: Length | None = None
    osl: Length | None = None
    batch: str | None = None
    metrics: dict[str, float | str | None]
    notes: str = ""

    def degree(self, name: str) -> int | None:
        """Return a degree of `parallel`, None where it is not stated; raise SkippedRow where it is no whole number."""
        value = self.parallel.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
            raise SkippedRow(f"parallel.{name} = {value!r} is no number of ranks")
        return int(value)
