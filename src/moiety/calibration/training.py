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
    """What Megatron-LM adds to kernels and transfers, as `python -m moiety.validation.fit training` writes it."""

    watts_per_tflops: Annotated[float, Field(gt=0, le=100)]
    """What products draw at full clock, over their rate in BF16. With less power the clock is lower in proportion."""
    pass_slowdown: Annotated[float, Field(ge=0, le=100)]
    """Time of passes over memory, over that of those that a step cannot do without: what a framework does not fuse."""
    exposed_share: Annotated[float, Field(ge=0, le=1)]
    """Of transfers beside computation: the part that the step takes longer for them."""
    exposed_sharding_share: Annotated[float, Field(ge=0, le=1)]
    """The same of gathering sharded weights and scattering their gradients, which whole layers wait for."""
    launch_s: Seconds
    """A kernel that the host launches on its own, in no CUDA graph."""
    paired_launches: Annotated[float, Field(ge=0, le=100)]
    """Such a launch where two micro-batches run in turns so that one exchanges beside the other, over one elsewhere."""


class TrainingCatalog(Record):
    """The constants that the package carries."""

    name: str
    constants: TrainingConstants


@cache
def load_training(name: str = DEFAULT_TRAINING) -> TrainingConstants:
    """Return the training constants of the catalogue."""
    return TrainingCatalog.model_validate_json(catalog_text("training", name, ".json")).constants
