"""`moiety run --bench`: the step beside its prediction, and a calibration that `moiety plan` takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")

from moiety.calibration.reader import read_calibration
from moiety.cli.plan_file import load_plan
from moiety.projection.project import evaluate
from tests.cli.command import moiety

if TYPE_CHECKING:
    from pathlib import Path


def test_the_loop_from_prediction_to_measurement_closes_through_files(
    runnable_checkpoint: Path, runnable_folder: Path, tmp_path: Path
) -> None:
    constants, trace = tmp_path / "measured.json", tmp_path / "trace.json"
    out = ("--calibration-out", constants, "--trace", trace, "--max-new-tokens", "3")
    done = moiety("run", runnable_folder, "--checkpoint", runnable_checkpoint, "--bench", "--json", *out)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    bench = document["bench"]
    assert document["calibration"] == str(constants)
    assert bench["step_s"] > 0
    assert bench["refitted_error"] == pytest.approx(bench["refitted_step_s"] / bench["step_s"] - 1)
    calibration = read_calibration(constants.read_text(), source=str(constants))
    step_s = evaluate(load_plan(str(runnable_folder))[0], calibration).phases[0].outcome.step_s
    overhead_s = calibration.engines["moiety"].step_overhead_s
    assert bench["refitted_step_s"] == pytest.approx(step_s + overhead_s, rel=1e-6)
    assert calibration.roofline["dense_gemm"].basis == "measured"
    again = tmp_path / "again"
    made = moiety(
        "plan", runnable_checkpoint, "--cluster", "local:2", "--strategy", "ep2_tp1", "--calibration", constants,
        "--quiet", "--out", again,
    )  # fmt: skip
    assert made.code == 0, made.err
    plan = json.loads((again / "enhanced_deployment_method.json").read_text())
    assert plan["calibration"]["name"] == calibration.name
    computed = sum(len(each["prompt_token_ids"]) + len(each["token_ids"]) - 1 for each in document["outputs"])
    chosen = [rank["expert_counts"]["0"] for rank in document["measured"]["ranks"]]
    assert sum(map(sum, chosen)) == plan["model"]["blocks"][0]["feed_forward"]["top_k"] * computed  # the bench's not
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1}
    assert {"attention", "dispatch", "expert_gate_up", "combine"} <= {event["name"] for event in events}
