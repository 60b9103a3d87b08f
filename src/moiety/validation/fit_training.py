"""`python -m moiety.validation.fit_training ROWS... --into CONSTANTS.json`: Megatron-LM's constants from measured runs.

Three constants for all models and devices, fitted to the logarithms of the steps' ratios, and tested on models and
devices left out. Runs of one configuration under several releases weigh as much as one.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moiety.calibration.catalog import calibration_for
from moiety.calibration.training import DEFAULT_TRAINING, TrainingCatalog, TrainingConstants
from moiety.files import write_all
from moiety.projection.training_run import TrainingParts, TrainingRun, training_parts
from moiety.validation.least_squares import minimise, robust
from moiety.validation.rows import read_rows
from moiety.validation.score import error_percents, score_of
from moiety.validation.skipped import SkippedRow
from moiety.validation.system_row import SystemRow
from moiety.validation.training_case import training_run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_START = np.array([1e-3, 1e-3, 1.0])
"""A few dozen launches a layer; gradients as fast as an all-reduce."""
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


def measured_runs(rows: Sequence[SystemRow]) -> list[MeasuredRun]:
    """Return the training rows that can be predicted and whose throughput was measured."""
    found = list[MeasuredRun]()
    for row in rows:
        if row.phase != "training" or row.tier != "A":
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
    tokens = row.metrics.get("tok_s_per_gpu")
    if isinstance(tokens, float) and tokens > 0:
        return run.tokens_per_step / tokens / run.strategy.num_gpus
    for name in ("tflops_per_gpu", "tflops_forced_balance"):
        tflops = row.metrics.get(name)
        if isinstance(tflops, float) and tflops > 0:
            return run.tokens_per_step * run.flops_per_token / (1e12 * tflops * run.strategy.num_gpus)
    return None


def fit_training(runs: Sequence[MeasuredRun]) -> TrainingConstants:
    """Return the constants under which the predicted steps are nearest to the measured ones."""
    alike = Counter(_configuration(each.run) for each in runs)
    weight = np.array([alike[_configuration(each.run)] ** -0.5 for each in runs])
    table = np.array([[p.work_s, p.dense_layers, p.moe_layers, p.gradients_s] for p in (each.parts for each in runs)])
    measured = np.array([each.step_s for each in runs])

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        return weight * robust(np.log((table @ np.array([1.0, *np.exp(logs)])) / measured), _SCALE)

    dense, moe, slowdown = np.exp(minimise(residuals, np.log(_START), rounds=_ROUNDS)).tolist()
    return TrainingConstants(
        basis="fitted",
        source=f"{len(runs)} runs: {_SOURCE}",
        range="Hopper and Blackwell, 8 to 256 GPUs, sequences of 4,096 and 8,192 tokens, no context parallelism",
        dense_layer_s=float(f"{dense:.4g}"),
        moe_layer_s=float(f"{moe:.4g}"),
        gradient_slowdown=float(f"{slowdown:.4g}"),
    )


def _configuration(run: TrainingRun) -> tuple[object, ...]:
    device, dtype = run.cluster.device.name, run.options.dtypes.weights
    return run.model.name, device, dtype, run.strategy.name, run.tokens_per_step, run.virtual_stages


def cross_validation(runs: Sequence[MeasuredRun]) -> list[str]:
    """Return one line for each way to leave runs out: every model, every device."""
    ways: dict[str, Callable[[MeasuredRun], str]] = {
        "model": lambda each: each.run.model.name,
        "device": lambda each: each.run.cluster.device.name,
    }
    lines = list[str]()
    for what, key in ways.items():
        errors = list[float]()
        for value in sorted({key(each) for each in runs}):
            constants = fit_training([each for each in runs if key(each) != value])
            own = [each.error(constants) for each in runs if key(each) == value]
            lines.append(f"training, {value} left out: {_line(own)}")
            errors += own
        lines.append(f"training, each {what} left out in turn: {_line(errors)}")
    return lines


def _line(errors: Sequence[float]) -> str:
    return "{} rows; MAPE {}, median {}, bias {}".format(len(errors), *error_percents(score_of(errors)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit the constants on the rows of the files named, print the errors, and write the constants."""
    parser = argparse.ArgumentParser(prog="python -m moiety.validation.fit_training", description=main.__doc__)
    parser.add_argument("rows", nargs="+", type=Path, help="files of measured rows, JSON Lines")
    parser.add_argument("--into", type=Path, help="the file that is written")
    parser.add_argument("--cross-validate", action="store_true", help="also fit without some rows, and test on those")
    given = parser.parse_args(arguments)
    read = [read_rows(path) for path in given.rows]
    runs = measured_runs([each.row for found in read for each in found.rows if isinstance(each.row, SystemRow)])
    if given.cross_validate:
        sys.stdout.writelines(f"{line}\n" for line in cross_validation(runs))
    constants = fit_training(runs)
    sys.stdout.write(f"training, fitted on: {_line([each.error(constants) for each in runs])}\n")
    if given.into:
        document = TrainingCatalog(name=DEFAULT_TRAINING, constants=constants).model_dump_json(indent=2)
        write_all(given.into.parent, {given.into.name: document + "\n"})


if __name__ == "__main__":
    main()
