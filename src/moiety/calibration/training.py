"""Constants of training runs: what a framework adds to the kernels and the transfers of a step."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from pydantic import Field

from moiety.calibration.calibration import Seconds, Sourced
from moiety.package_data import catalog_text
from moiety.records import Record

DEFAULT_TRAINING = "training-2026-11"


class TrainingConstants(Sourced):
    """What Megatron-LM adds to a step, as `python -m moiety.validation.fit training` writes it."""

    dense_layer_s: Seconds
    """A dense layer's forward and backward pass of a micro-batch: kernels that are launched one by one, casts, norms
    and activations that are not fused."""
    moe_layer_s: Seconds
    """The same of a layer with experts, which also counts, sorts and permutes tokens."""
    gradient_slowdown: Annotated[float, Field(ge=0, le=100)]
    """Time of reducing gradients over that of an all-reduce in the activations' format: they are summed in FP32."""


class TrainingCatalog(Record):
    """The constants that the package carries."""

    name: str
    constants: TrainingConstants


@cache
def load_training(name: str = DEFAULT_TRAINING) -> TrainingConstants:
    """Return the training constants of the catalogue."""
    return TrainingCatalog.model_validate_json(catalog_text("training", name, ".json")).constants
