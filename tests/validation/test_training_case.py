"""Training rows: what they are read as, what a step is made of, and constants fitted to steps that are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moiety.calibration.catalog import calibration_for
from moiety.calibration.training import TrainingConstants, load_training
from moiety.projection.training_run import TrainingRun, training_parts
from moiety.validation.fit_training import MeasuredRun, fit_training
from moiety.validation.serving_case import SkippedRow
from moiety.validation.system_row import SystemRow
from moiety.validation.training_case import predict_training, training_run

ROW: dict[str, Any] = {
    "id": "t",
    "kind": "e2e",
    "hardware": "DGX-H100",
    "n_gpus": 16,
    "model": "Qwen3_30B_a3B (tokendrop)",
    "precision": "BF16",
    "parallel": {"tp": 1.0, "pp": 2.0, "cp": 1.0, "vp": 12.0, "ep": 8.0, "fsdp": 0},
    "phase": "training",
    "isl": 4096,
    "batch": "GBS 512 MBS 2",
    "metrics": {"tok_s_per_gpu": 1.0},
}


def _run(**changes: object) -> TrainingRun:
    return training_run(SystemRow.model_validate(ROW | changes))


def _step_s(run: TrainingRun) -> float:
    return training_parts(run, calibration_for(run.cluster.device.architecture)).step_s(load_training())


def _degrees(**changes: object) -> dict[str, object]:
    return {**ROW["parallel"], **changes}


@pytest.mark.parametrize(
    ("changes", "strategy", "microbatches"),
    [
        ({}, "ep8_tp1_pp2", 32),
        ({"n_gpus": 32}, "ep8_tp1_pp2_x2", 16),
        ({"parallel": _degrees(tp=2)}, "tp2_dp4_ep8_pp2", 64),
        ({"parallel": _degrees(tp=2, ep=4, method="MCore")}, "ep4_tp2_pp2", 64),
        ({"parallel": _degrees(tp=2, ep=4, etp=1, method="Folding")}, "tp2_dp2_ep4_pp2_x2", 64),
        ({"batch": "GBS 512"}, "ep8_tp1_pp2", 64),
    ],
)
def test_degrees_and_batch_become_a_run(changes: dict[str, Any], strategy: str, microbatches: int) -> None:
    run = _run(**changes)
    assert (run.strategy.name, run.num_microbatches) == (strategy, microbatches)
    assert run.tokens_per_step == 512 * 4096


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parallel": _degrees(cp=2)}, "context parallelism"),
        ({"parallel": _degrees(fsdp=16)}, "fully sharded"),
        ({"parallel": {"same_as": "Table 3"}}, "by reference"),
        ({"parallel": _degrees(ep=3)}, "divide"),
        ({"batch": "16M tokens"}, "global batch"),
        ({"batch": "GBS 7 MBS 2"}, "global batch does not divide"),
        ({"precision": "int3"}, "int3"),
        ({"model": "unheard-of"}, "catalogue"),
        ({"hardware": "DGX-Z1"}, "catalogue"),
        ({"isl": None}, "not stated"),
    ],
)
def test_what_cannot_be_predicted_is_skipped_by_name(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SkippedRow, match=reason):
        _run(**changes)


def test_a_job_of_whole_racks_uses_64_gpus_of_each() -> None:
    run = _run(hardware="DGX-GB200", n_gpus=256, parallel=_degrees(ep=64), batch="GBS 4096 MBS 1")
    assert [tier.num_gpus for tier in run.cluster.tiers] == [64, 256]


@pytest.mark.parametrize("parts", [2, 4])
def test_virtual_stages_shorten_the_bubble_of_a_short_step(parts: int) -> None:
    run = replace(_run(), virtual_stages=1, num_microbatches=4)
    assert _step_s(replace(run, virtual_stages=parts)) < _step_s(run)


def test_recomputation_costs_less_than_a_third_of_the_step() -> None:
    run = _run()
    assert 1.1 < _step_s(replace(run, recomputes=True)) / _step_s(run) < 4 / 3


def test_narrow_formats_pay_for_their_casts() -> None:
    wide, narrow = _run(), _run(precision="FP8-MX")
    assert _step_s(narrow) < _step_s(wide)
    assert _step_s(narrow) > _step_s(wide) / 2


def test_predicted_figures_are_one_figure_in_several_units() -> None:
    row = SystemRow.model_validate(ROW)
    found, run = predict_training(row), _run()
    assert found["tok_s_per_gpu"] * found["step_s"] * 16 == pytest.approx(512 * 4096)
    assert found["model_tflops_per_gpu"] == pytest.approx(found["tok_s_per_gpu"] * run.flops_per_token / 1e12)
    assert found["mfu"] * run.cluster.device.peak("bf16") == pytest.approx(1e12 * found["model_tflops_per_gpu"])


def test_a_fit_finds_the_constants_that_made_the_steps() -> None:
    true = TrainingConstants(
        basis="fitted", source="this test", dense_layer_s=2e-3, moe_layer_s=5e-3, gradient_slowdown=1.5
    )
    changes: list[dict[str, Any]] = [
        {},
        {"parallel": _degrees(pp=1), "n_gpus": 64},
        {"model": "LLAMA3_8B", "parallel": {"tp": 2, "pp": 1}, "n_gpus": 64},
        {"model": "LLAMA3_70B", "parallel": {"tp": 8, "pp": 2}, "n_gpus": 64},
        {"model": "Mixtral-8x7B", "n_gpus": 128, "parallel": _degrees(pp=1)},
    ]
    runs = [_run(**each) for each in changes]
    parts = [training_parts(run, calibration_for("hopper")) for run in runs]
    fitted = fit_training([MeasuredRun(r, p, p.step_s(true)) for r, p in zip(runs, parts, strict=True)])
    assert fitted.dense_layer_s == pytest.approx(true.dense_layer_s, rel=0.02)
    assert fitted.moe_layer_s == pytest.approx(true.moe_layer_s, rel=0.02)
    assert fitted.gradient_slowdown == pytest.approx(true.gradient_slowdown, rel=0.05)
