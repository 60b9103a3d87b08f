"""The catalogue's own measurements: predictions may not get worse, and both ways to predict agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from moiety.calibration.serving_catalog import load_serving
from moiety.projection.serving_simulation import simulated_closed_loop
from moiety.validation.compare import compare_rows
from moiety.validation.facts import catalog_facts
from moiety.validation.fit_law import Law, prior
from moiety.validation.fit_serving import as_rows, fit_serving, held_out, known_rows
from moiety.validation.phase_case import PHASES, predict_phase
from moiety.validation.predict import ServingPredictor
from moiety.validation.score import Score, metric_scores, plan_choice
from moiety.validation.serving_case import serving_case
from moiety.validation.serving_constants import start_constants
from moiety.validation.serving_row import ServingRow
from moiety.validation.system_row import SystemRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.validation.compare import Compared

ROUNDING = 1e-3
"""What the catalogue's constants lose by having four digits, and the planner's loads by theirs."""
MARGIN = 0.02
"""By how much, in shares of the measured values, the errors may be larger than when they were last written down."""
MEDIAN_AND_MAPE = {
    ("agg", "tpot_ms"): (0.0691, 0.1815),
    ("agg", "ttft_ms"): (0.1214, 0.2336),
    ("comm", "combine_GBps"): (0.08944, 0.09057),
    ("comm", "combine_us"): (0.09198, 0.116),
    ("comm", "dispatch_GBps"): (0.03283, 0.04486),
    ("comm", "dispatch_us"): (0.037, 0.05917),
    ("comm", "us"): (0.03583, 0.04343),
    ("decode", "output_tok_s_per_gpu"): (0.01834, 0.01834),
    ("disagg", "tpot_ms"): (0.1864, 0.1648),
    ("disagg", "ttft_ms"): (0.1207, 0.2004),
    ("kernel", "deepep_ht_plus_gemm_us"): (0.02198, 0.02198),
    ("kernel", "down_us"): (0.03817, 0.04917),
    ("kernel", "fa3_tflops"): (0.009977, 0.009977),
    ("kernel", "median_us"): (0.04956, 0.04956),
    ("kernel", "megamoe_us"): (0.002627, 0.002627),
    ("kernel", "moe_layer_us"): (0.03446, 0.03446),
    ("kernel", "tflops"): (0.08073, 0.1252),
    ("kernel", "tflops_median"): (0.05247, 0.05247),
    ("kernel", "up_us"): (0.0644, 0.06762),
    ("kernel", "us"): (0.04213, 0.0462),
    ("mixed", "gpu_power_W_per_gpu"): (0.08984, 0.09464),
    ("mixed", "output_tok_s_per_gpu"): (0.09024, 0.1116),
    ("mixed", "output_tok_s_total"): (0.09024, 0.1116),
    ("prefill", "input_tok_s_per_gpu"): (0.03789, 0.04173),
    ("prefill", "input_tok_s_per_node"): (0.03789, 0.0462),
    ("training", "mfu"): (0.0197, 0.0197),
    ("training", "mfu_bf16"): (0.01334, 0.01334),
    ("training", "model_tflops_per_gpu"): (0.04615, 0.06213),
    ("training", "step_s"): (0.00883, 0.00883),
    ("training", "tflops_per_gpu"): (0.01344, 0.01779),
    ("training", "tok_s_per_gpu"): (0.04043, 0.05967),
}
"""Of the facts of a phase, by metric."""
AS_PLANNED = {
    ("agg", "tpot_ms"): (0.08514, 0.2199),
    ("agg", "ttft_ms"): (0.3884, 0.5827),
    ("disagg", "tpot_ms"): (0.07336, 0.1312),
    ("disagg", "ttft_ms"): (0.1626, 0.2542),
}
"""The same of those that a plan can be made of, as `moiety plan` would time them."""


@pytest.fixture(scope="module")
def facts() -> list[ServingRow]:
    """Return the serving rows of workers that do both phases."""
    rows = [each.row for each in catalog_facts().rows if isinstance(each.row, ServingRow)]
    return [row for row in rows if row.mode == "agg"]


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, str], Score]:
    compared = compare_rows(catalog_facts().rows)
    assert [each.id for each in compared if each.skipped] == []
    return _by_phase(compared)


def _by_phase(compared: Sequence[Compared]) -> dict[tuple[str, str], Score]:
    """Return the errors of rows by (phase, metric)."""
    phases = {each.group["phase"] for each in compared}
    by_phase = {phase: metric_scores([each for each in compared if each.group["phase"] == phase]) for phase in phases}
    return {(phase, metric): found.score for phase, by in by_phase.items() for metric, found in by.items()}


def test_predictions_are_no_worse_than_they_were(scores: dict[tuple[str, str], Score]) -> None:
    _are_no_worse(scores, MEDIAN_AND_MAPE)


def test_plans_are_no_worse_than_they_were() -> None:
    serving = [each for each in catalog_facts().rows if isinstance(each.row, ServingRow)]
    compared = compare_rows(serving, as_planned=True)
    assert sum(each.skipped is None for each in compared) >= 46
    _are_no_worse(_by_phase(compared), AS_PLANNED)


def _are_no_worse(
    scores: dict[tuple[str, str], Score], written_down: dict[tuple[str, str], tuple[float, float]]
) -> None:
    assert scores.keys() == written_down.keys()
    for measured, (median, mape) in written_down.items():
        assert scores[measured].median <= median + MARGIN, measured
        assert scores[measured].mape <= mape + MARGIN, measured


def test_every_fact_names_its_source(facts: list[ServingRow]) -> None:
    assert 24 <= len(facts) <= 60
    assert all(each.row.source for each in catalog_facts().rows)


def test_the_law_that_is_fitted_is_the_law_that_predicts(facts: list[ServingRow]) -> None:
    start, (logs, _) = start_constants(), prior()
    predictor = ServingPredictor(start)
    for family in (0, 1):
        known = [each for each in known_rows(facts) if each.family == family and not each.case.draft_tokens]
        tpot, ttft = Law(as_rows(known)).predict(logs)
        for row, period, first in zip(known, tpot, ttft, strict=True):
            latency = predictor.predict(row.case)
            assert latency.tpot_s == pytest.approx(float(period), rel=ROUNDING), row.row.id
            assert latency.ttft_s == pytest.approx(float(first), rel=ROUNDING), row.row.id


def test_the_law_that_is_fitted_is_the_law_that_predicts_a_phase_by_itself() -> None:
    start, (logs, _), sides = start_constants(), prior(), set[str]()
    for row in (each.row for each in catalog_facts().rows):
        known = known_rows([row]) if isinstance(row, SystemRow) and row.phase in PHASES else []
        if not known:
            continue
        side = "input" if row.phase == "prefill" else "output"
        measured, predicted = row.metrics, predict_phase(row, start)
        rate = measured[f"{side}_tok_s_per_gpu"] / predicted[f"{side}_tok_s_per_gpu"]
        step_s, _ = Law(as_rows(known)).predict(logs)
        assert known[0].row.measured.tpot_ms * rate == pytest.approx(1e3 * float(step_s[0]), rel=ROUNDING), row.id
        sides.add(side)
    assert sides == {"input", "output"}


def test_of_kernels_alone_no_engine_s_constants_are_fitted() -> None:
    rows = [each.row for each in catalog_facts().rows if isinstance(each.row, SystemRow)]
    own = [row for row in rows if row.phase in PHASES and "profile-data" in row.source]
    assert own
    assert known_rows(own) == []


def test_a_fit_is_nearer_than_where_it_started(facts: list[ServingRow]) -> None:
    known = [each for each in known_rows(facts) if each.family == 1][:10]
    logs = fit_serving(known)[1]
    table = as_rows(known)
    before, after = (np.abs(Law(table).predict(each)[0] / table.tpot_s - 1).mean() for each in (prior()[0], logs))
    assert after < before


def test_repeats_of_a_configuration_are_held_out_together(facts: list[ServingRow]) -> None:
    row = facts[0]
    assert held_out(row) == held_out(row.model_copy(update={"id": "again", "backend_version": "other"}))
    assert {held_out(each) for each in facts} == {True, False}


def test_simulation_and_closed_form_agree_on_the_time_per_token(facts: list[ServingRow]) -> None:
    predictor, ratios = ServingPredictor(), []
    for row in facts[::4]:
        case = serving_case(row)
        simulated = simulated_closed_loop(predictor.pool(case, case.decode), case.concurrency)
        ratios.append(simulated.tpot.mean / predictor.predict(case).tpot_s)
    assert np.median(np.abs(np.log(ratios))) < 0.05


def test_constants_know_their_releases() -> None:
    family = load_serving().family("blackwell")
    assert family.release("vllm", "0.19.0").since == "0.15.0"
    assert family.release("vllm", "nightly").since is None
    assert load_serving().family("unheard-of") is load_serving().families[0]
    assert all(each.source for each in family.releases)


def test_choosing_between_deployments_needs_two_of_them() -> None:
    assert plan_choice(compare_rows(catalog_facts().rows[:1])) is None
