"""The Plan: pools that tile the ranks, figures that follow from the fields, JSON that comes back equal."""

from __future__ import annotations

import json

import pytest

from moiety.plan import Arena, Buffer, MemoryPlan, Plan, Schedule
from tests.scenarios import prefill_load, scenario, served_plan, small_model


def test_a_plan_comes_back_equal_from_its_json() -> None:
    plan = served_plan()
    text = plan.model_dump_json()
    assert Plan.model_validate_json(text) == plan
    assert Plan.model_validate_json(text).model_dump_json() == text
    assert (plan.num_gpus, plan.mode) == (16, "aggregated")


@pytest.mark.parametrize(
    ("first_ranks", "said"), [((1,), "starts at rank 1"), ((0, 15), "end at 16"), ((0, 16), "need 32 GPUs")]
)
def test_pools_that_do_not_tile_the_ranks_are_refused(first_ranks: tuple[int, ...], said: str) -> None:
    document = json.loads(served_plan().model_dump_json())
    pool = {key: value for key, value in document["pools"][0].items() if key != "rank_groups"}
    del document["num_gpus"]
    document["pools"] = [pool | {"first_rank": first} for first in first_ranks]
    with pytest.raises(ValueError, match=said):
        Plan.model_validate(document)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_versions_are_refused(version: object) -> None:
    document = json.loads(served_plan().model_dump_json()) | {"schema_version": version}
    with pytest.raises(ValueError, match="schema_version"):
        Plan.model_validate(document)


def test_a_schedule_counts_its_tokens() -> None:
    schedule = Schedule(num_microbatches=3, prefill_tokens=10, prompt_tokens=5, decode_sequences=2, context_tokens=7)
    assert (schedule.tokens_per_microbatch, schedule.tokens_per_step) == (12, 36)


def test_a_memory_plan_names_its_biggest_part() -> None:
    memory = MemoryPlan(stage=0, bytes_by_kind={"weights": 7, "cache": 9, "activations": 9}, capacity_bytes=25)
    assert (memory.total_bytes, memory.fits, memory.biggest) == (25, True, "cache")
    assert not memory.model_copy(update={"capacity_bytes": 24}).fits


def test_fragmentation_is_what_the_arena_holds_beyond_need() -> None:
    buffer = Buffer(name="a", size_bytes=3, first_op=0, last_op=1, offset_bytes=0)
    arena = Arena(buffers=(buffer,), peak_bytes=4, live_bytes=3, unplanned_peak_bytes=5)
    assert arena.fragmentation == 0.25
    assert arena.model_copy(update={"peak_bytes": 0}).fragmentation == 0


def test_a_scenario_is_what_a_plan_was_made_for() -> None:
    plan = served_plan()
    case = scenario(small_model(), "h100x16", prefill_load())
    assert (plan.model, plan.cluster, plan.workload) == (case.model, case.cluster, case.workload)
