"""Training: Megatron-LM's constants from measured runs.

Six constants for all models and devices, fitted to the logarithms of the steps' ratios, and tested on models and
devices left out. Runs of one configuration under several releases weigh as much as one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.calibration.catalog import calibration_for
from moiety.calibration.training import DEFAULT_TRAINING, TrainingCatalog, TrainingConstants
from moiety.projection.training_run import TrainingParts, TrainingRun, training_parts
from moiety.validation.fitting import Fitting, Split, each_value, rounded_fields
from moiety.validation.least_squares import minimise, robust
from moiety.validation.published_flops import published_flops_per_token
from moiety.validation.skipped import SkippedRow
from moiety.validation.system_row import SystemRow
from moiety.validation.training_case import training_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from moiety.validation.serving_row import ServingRow

_START = np.array([0.8, 1.5, 0.3, 0.4, 1e-5, 2.0])
"""Power is scarce on every device; some unfused passes; transfers mostly hidden; ten microseconds a launch, twice that
for each of two micro-batches in turns."""
_DEAREST = 100.0
"""The most that a launch in turns can cost, over one elsewhere (`TrainingConstants.paired_launches`)."""
_SCALE, _ROUNDS = 0.2, 60
_SOURCE = "Megatron-Bridge performance summaries, Megatron-MoE-ModelZoo, MoE Parallel Folding (arXiv 2504.14960)"


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A training run beside what its step took."""

    run: TrainingRun
    parts: TrainingParts
    step_s: float

    def error(self, constants: TrainingConstants) -> float:
        """Return the relative error of the predicted throughput."""
        return self.step_s / self.parts.step_s(constants) - 1


def measured_runs(rows: Sequence[ServingRow | SystemRow]) -> list[MeasuredRun]:
    """Return the training rows that can be predicted and whose throughput was measured."""
    found = list[MeasuredRun]()
    for row in rows:
        if not isinstance(row, SystemRow) or row.phase != "training" or row.tier != "A":
            continue
        try:
            run = training_run(row)
        except SkippedRow:
            continue
        step_s = _measured_step_s(row, run)
        if step_s is not None:
            parts = training_parts(run, calibration_for(run.cluster.device.architecture))
            found.append(MeasuredRun(run, parts, step_s))
    return found


def _measured_step_s(row: SystemRow, run: TrainingRun) -> float | None:
    if tokens := row.metric("tok_s_per_gpu"):
        return run.tokens_per_step / tokens / run.strategy.num_gpus
    for name in ("tflops_per_gpu", "tflops_forced_balance"):
        if tflops := row.metric(name):
            return run.tokens_per_step * published_flops_per_token(row, run) / (1e12 * tflops * run.strategy.num_gpus)
    return None


def fit_training(runs: Sequence[MeasuredRun]) -> TrainingConstants:
    """Return the constants under which the predicted steps are nearest to the measured ones."""
    alike = Counter(_configuration(each.run) for each in runs)
    weight = np.array([alike[_configuration(each.run)] ** -0.5 for each in runs])
    measured = np.array([each.step_s for each in runs])

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        constants = _constants(logs)
        predicted = np.array([each.parts.step_s(constants) for each in runs])
        return weight * robust(np.log(predicted / measured), _SCALE)

    constants = _constants(minimise(residuals, np.log(_START), rounds=_ROUNDS)).model_copy(
        update={
            "source": f"{len(runs)} runs: {_SOURCE}",
            "range": "Hopper and Blackwell, 8 to 1,024 GPUs, sequences of 4,096 to 131,072 tokens",
        }
    )
    return rounded_fields(constants)


def _constants(logs: NDArray[np.float64]) -> TrainingConstants:
    watts, slowdown, exposed, sharding, launch, paired = np.exp(logs).tolist()
    return TrainingConstants(
        basis="fitted",
        source=_SOURCE,
        watts_per_tflops=watts,
        pass_slowdown=slowdown,
        exposed_share=min(exposed, 1.0),
        exposed_sharding_share=min(sharding, 1.0),
        launch_s=launch,
        paired_launches=min(paired, _DEAREST),
    )


def _configuration(run: TrainingRun) -> tuple[object, ...]:
    device, dtype = run.cluster.device.name, run.options.dtypes.weights
    return run.model.name, device, dtype, run.strategy.name, run.tokens_per_step, run.virtual_stages


def _errors(constants: TrainingConstants, runs: Sequence[MeasuredRun]) -> dict[str, list[float]]:
    return {"throughput": [each.error(constants) for each in runs]}


def _splits(runs: Sequence[MeasuredRun]) -> list[Split[MeasuredRun]]:
    splits = list[Split[MeasuredRun]]()
    for what, by_value in (
        ("model", each_value(lambda each: each.run.model.name, runs)),
        ("device", each_value(lambda each: each.run.cluster.device.name, runs)),
    ):
        splits += [Split(f"{what} {value}", (left_out,)) for value, left_out in by_value.items()]
        splits.append(Split(f"each {what} in turn", tuple(by_value.values())))
    return splits


def _rewritten(_text: str, constants: TrainingConstants, _runs: Sequence[MeasuredRun]) -> str:
    return TrainingCatalog(name=DEFAULT_TRAINING, constants=constants).model_dump_json(indent=2) + "\n"


TRAINING_FIT = Fitting("training", measured_runs, fit_training, _errors, _splits, _rewritten)
