"""Utilisations that others have measured and published, for comparison with claimed ones."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from pydantic import Field

from moiety.package_data import catalog_text
from moiety.records import Record
from moiety.yaml_text import Fields

_ROW_FIELDS = ("model", "num_experts", "num_gpus", "phase", "dtype", "utilization", "device", "source")


class PublishedUtilization(Record):
    """A model FLOPs utilisation that somebody reports."""

    model: str
    num_experts: Annotated[int, Field(gt=0)]
    """Routed experts a layer; 1 for a dense model."""
    num_gpus: Annotated[int, Field(gt=0)]
    phase: str
    dtype: str
    utilization: Annotated[float, Field(gt=0, le=1)]
    device: str
    source: str


@cache
def published_utilizations() -> tuple[PublishedUtilization, ...]:
    """Return the catalogue's published utilisations, the highest first."""
    text = catalog_text("claims/measured", "model-flops-utilization")
    fields = Fields.parse(text, source="catalogue", what="measurements", known=("name", "rows"))
    rows = tuple(
        PublishedUtilization(
            model=row.text("model"),
            num_experts=row.integer("num_experts", 1, 1_000_000),
            num_gpus=row.integer("num_gpus", 1, 10_000_000),
            phase=row.text("phase"),
            dtype=row.text("dtype"),
            utilization=row.number("utilization", 0.0, 1.0),
            device=row.text("device"),
            source=row.text("source"),
        )
        for row in fields.mappings("rows", _ROW_FIELDS)
    )
    return tuple(sorted(rows, key=lambda row: (-row.utilization, row.model, row.num_gpus)))


def published_for(num_experts: int) -> tuple[PublishedUtilization, ...]:
    """Return the published utilisations of models with at least as many experts, the highest first."""
    return tuple(row for row in published_utilizations() if row.num_experts >= num_experts)
