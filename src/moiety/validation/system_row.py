"""A measurement of anything but a serving run: a kernel, a transfer, power, throughput."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from moiety.validation.serving_row import MOST_RANKS, Degree, Number, Row, states
from moiety.validation.skipped import SkippedRow

_MOST_DIGITS = 12
_MOST_MEASURED = 1e15


def _has_readable_numbers(text: str) -> str:
    digits = max(map(len, re.findall(r"\d+", text)), default=0)
    if digits > _MOST_DIGITS:
        msg = f"holds a number of {digits:,} digits; at most {_MOST_DIGITS} are read"
        raise ValueError(msg)
    return text


Length = Annotated[float, Field(ge=1, le=100_000_000), Number]
Words = Annotated[str, AfterValidator(_has_readable_numbers)]
"""Text of which sizes are read."""


class SystemRow(Row):
    """One measured point; what was measured stands in `metrics`, in the units that their names end in."""

    id: str
    kind: Literal["e2e", "energy", "kernel", "comm", "latency", "overlap"]
    tier: Literal["A", "B"] = "A"
    """A: the configuration is complete; B: parts of it are not stated."""
    source: str = ""
    hardware: str
    n_gpus: Degree | None = None
    model: Words
    precision: str | None = None
    parallel: dict[str, Any] = Field(default_factory=dict)
    phase: str | None = None
    isl: Length | None = None
    osl: Length | None = None
    batch: Words | None = None
    metrics: dict[str, float | str | None]
    notes: str = ""

    def degree(self, name: str) -> int | None:
        """Return a degree of `parallel`, None where it is not stated; raise SkippedRow where it is no whole number."""
        value = self.parallel.get(name)
        if not states(value):
            return None
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else 0
        if 1 <= number <= MOST_RANKS and number == int(number):
            return int(number)
        raise SkippedRow(f"parallel.{name} = {value!r} is no number of ranks")

    def metric(self, name: str) -> float | None:
        """Return a measured number, None where there is none that can be: text, negative or beyond all measure."""
        value = self.metrics.get(name)
        return value if isinstance(value, float) and 0 <= value <= _MOST_MEASURED else None
