"""Device: what one GPU can do at most, as its datasheet says."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from moiety.dtypes import Dtype
from moiety.records import Record

Positive = Annotated[float, Field(ge=1e-3, le=1e20)]


class Device(Record):
    """One accelerator. Rates are peaks; what a kernel reaches of them is the calibration's business."""

    name: str
    architecture: str
    """Generation, as calibrations group them: ampere, hopper, blackwell, blackwell-rtx, ada, cdna3, cdna4, generic."""
    memory_bytes: Annotated[int, Field(gt=0, le=2**50)]
    memory_bandwidth_bytes_per_s: Positive
    peak_flops_per_s: dict[Dtype, Positive] = Field(min_length=1)
    """Dense (no sparsity) matrix rate per number format; formats that are missing are computed in a wider one."""
    num_sms: Annotated[int, Field(gt=0, le=100_000)]
    """Streaming multiprocessors or compute units."""
    max_clock_hz: Positive
    idle_power_w: Positive
    max_power_w: Positive
    source: str = ""
    assumed: tuple[str, ...] = ()
    """Fields whose values are assumptions, not datasheet facts, with the reason."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not {"bf16", "fp16", "fp32"} & set(self.peak_flops_per_s):
            msg = "peak needs a rate for at least one of bf16, fp16, fp32"
            raise ValueError(msg)
        if self.idle_power_w > self.max_power_w:
            msg = f"idle power, {self.idle_power_w:g} W, must not exceed max power, {self.max_power_w:g} W"
            raise ValueError(msg)
        return self

    def compute_dtype(self, dtype: Dtype) -> Dtype:
        """Return the format that a matrix product of `dtype` operands runs in: itself, or the next wider one it has."""
        wider: dict[Dtype, tuple[Dtype, ...]] = {
            "mxfp4": ("mxfp4", "fp4", "bf16", "fp16", "fp32"),
            "fp4": ("fp4", "mxfp4", "bf16", "fp16", "fp32"),
            "int4": ("bf16", "fp16", "fp32"),
            "int8": ("int8", "bf16", "fp16", "fp32"),
            "fp8": ("fp8", "bf16", "fp16", "fp32"),
            "bf16": ("bf16", "fp16", "fp32"),
            "fp16": ("fp16", "bf16", "fp32"),
            "fp32": ("fp32", "bf16", "fp16"),
        }
        return next(each for each in wider[dtype] if each in self.peak_flops_per_s)

    def peak(self, dtype: Dtype) -> float:
        """Return the peak rate in FLOP/s of matrix products of `dtype` operands."""
        return self.peak_flops_per_s[self.compute_dtype(dtype)]
