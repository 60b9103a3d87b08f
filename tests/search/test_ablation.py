"""Ablation: what each option is worth."""

from __future__ import annotations

import pytest

from moiety.plan import DtypePolicy, Options
from moiety.search.ablation import ablate
from moiety.search.options import baseline_options, default_options
from tests.scenarios import CALIBRATION, evaluated, prefill_load, scenario, served_plan, small_model, training_load

WIDE = DtypePolicy(weights="fp32", experts="fp32", activations="fp32", kv_cache="fp32", dispatch="fp32", combine="fp32")


def test_every_option_is_worth_something_and_none_of_the_good_ones_hurts() -> None:
    worth = {each.option: each for each in ablate(served_plan(), CALIBRATION)}
    assert set(worth) == set(Options.model_fields) - {
        "placement",
        "redundant_experts",
        "virtual_stages",
        "fully_sharded",
    }
    for name in ("all_to_all", "two_batch_overlap", "flash_attention", "fused_kernels"):
        # what only computes may hide behind the network
        assert worth[name].throughput_without <= (1 if name == "fused_kernels" else 0.999), name
        alone = worth[name].throughput_alone
        assert alone is not None
        assert alone >= 1, name
    assert worth["activation_checkpointing"].throughput_without == pytest.approx(1)  # nothing to recompute in prefill
    assert worth["arena"].memory_without_bytes >= 0
    assert worth["dtypes"].throughput_alone is None
    assert worth["dtypes"].throughput_without < 1
    assert worth["dtypes"].memory_without_bytes > 0


def test_an_option_that_is_off_is_judged_the_other_way_round() -> None:
    case = scenario(small_model(), "h100x16", prefill_load())
    bare = evaluated(case, "ep16_tp1", baseline_options(default_options(case)))
    for each in ablate(bare, CALIBRATION):
        if each.option != "dtypes":
            assert each.setting in {"off", "flat"}
            assert each.throughput_alone == pytest.approx(each.throughput_without)


def test_the_widest_formats_have_no_other_side() -> None:
    case = scenario(small_model(), "h100x16", prefill_load())
    plan = evaluated(case, "ep16_tp1", Options(dtypes=WIDE))
    assert "dtypes" not in {each.option for each in ablate(plan, CALIBRATION)}


def test_parts_of_pipeline_stages_are_worth_shorter_waits() -> None:
    case = scenario(small_model(num_layers=16), "h100x16", training_load(tokens=64 * 1024))
    options = default_options(case).model_copy(update={"virtual_stages": 2, "two_batch_overlap": False})
    worth = {each.option: each for each in ablate(evaluated(case, "ep4_tp1_pp4", options), CALIBRATION)}
    assert worth["virtual_stages"].setting == "2"
    assert worth["virtual_stages"].throughput_without < 1
    alone = worth["virtual_stages"].throughput_alone
    assert alone is not None
    assert alone > 1


def test_sharding_saves_memory_in_training() -> None:
    case = scenario(small_model(), "h100x16", training_load())
    worth = {each.option: each for each in ablate(evaluated(case, "ep16_tp1"), CALIBRATION)}
    assert worth["dense_parameter_sharding"].setting == "on"
    assert worth["dense_parameter_sharding"].memory_without_bytes > 0


def test_full_sharding_is_judged_where_a_plan_has_it() -> None:
    case = scenario(small_model(), "h100x16", training_load())
    options = default_options(case).model_copy(update={"fully_sharded": True})
    worth = {each.option: each for each in ablate(evaluated(case, "ep4_tp1_x4", options), CALIBRATION)}
    assert worth["fully_sharded"].setting == "on"
    assert worth["fully_sharded"].memory_without_bytes > worth["dense_parameter_sharding"].memory_without_bytes == 0
