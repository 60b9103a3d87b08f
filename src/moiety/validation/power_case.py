"""What the law of power says of a measured serving run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.calibration.catalog import calibration_for
from moiety.calibration.serving_catalog import load_serving
from moiety.cost.power import padding_flops, power_w, products_peak
from moiety.graph.model_flops import model_flops_per_token
from moiety.validation.predict import ServingPredictor
from moiety.validation.serving_case import row_model, serving_case
from moiety.validation.skipped import SkippedRow
from moiety.validation.stated import batch, deployment
from moiety.validation.transfer_case import row_device

if TYPE_CHECKING:
    from moiety.calibration.calibration import PowerConstants
    from moiety.cluster.device import Device
    from moiety.validation.system_row import SystemRow


@dataclass(frozen=True, slots=True)
class PowerPoint:
    """How busy a GPU was during a run, all of it measured or counted: the law of power alone is on trial."""

    device: Device
    is_moe: bool
    mfu: float
    """Of the steps that decode, at the peak of the products' format, with the rows that kernels pad experts' to."""
    mbu: float
    """Of them too."""
    prompt_share: float
    """Of the time, spent on steps that compute prompts."""

    def power_w(self, constants: PowerConstants) -> float:
        """Return watts over the run; steps that compute prompts run at the device's power limit."""
        decode = power_w(self.device, constants, mfu=self.mfu, mbu=self.mbu, is_moe=self.is_moe)
        return (1 - self.prompt_share) * decode + self.prompt_share * self.device.max_power_w


def power_point(row: SystemRow) -> PowerPoint:
    """Return a row's point; raise SkippedRow where it does not state what that takes.

    Prompts' lengths are not stated; their share of the time is what a token takes on average (requests in flight over
    throughput) beyond what it takes in the median, which is a step without prompts.
    """
    rate, step_ms, gpus = row.metric("output_tok_s_total"), row.metric("median_itl_ms"), row.n_gpus
    if not rate or not step_ms or not gpus or not row.osl:
        raise SkippedRow("throughput, time between tokens or output length is not stated")
    model, device = row_model(row.model), row_device(row)
    case = serving_case(deployment(row, "vllm", batch(row), 1, row.osl))
    pool = ServingPredictor(load_serving()).pool(case, case.decode)
    flops = model_flops_per_token(model, context_tokens=row.osl / 2, emitted_share=1.0, training=False)
    step_s, in_flight, dtypes = step_ms * 1e-3, batch(row), case.options.dtypes
    peak, padded = products_peak(device, model, dtypes), padding_flops("vllm", model, dtypes, in_flight)
    sequences = max(round(in_flight / pool.num_groups), 1)
    moved = pool.decode_bytes(sequences, round(row.osl / 2))
    return PowerPoint(
        device=device,
        is_moe=model.moe is not None,
        mfu=min((in_flight * flops + padded) / peak / step_s / gpus, 1.0),
        mbu=min(moved / (step_s * device.memory_bandwidth_bytes_per_s), 1.0),
        prompt_share=min(max(1 - rate * step_s / in_flight, 0.0), 1.0),
    )


def predict_power(row: SystemRow) -> dict[str, float]:
    """Return watts of a GPU at the measured throughput."""
    point = power_point(row)
    return {"gpu_power_W_per_gpu": point.power_w(calibration_for(point.device.architecture).power)}
