"""The Chrome trace of a step: valid, complete, in order, and bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moiety.calibration.catalog import load_calibration
from moiety.cluster.catalog import load_cluster
from moiety.model.catalog import load_catalog_model
from moiety.plan import Options, Schedule
from moiety.projection.scenario import Scenario
from moiety.projection.step import time_step
from moiety.report import chrome_trace as module
from moiety.report.chrome_trace import TracedPool, chrome_trace
from moiety.search.judge import place
from moiety.strategy.strategy import parse_strategy
from moiety.workload.catalog import load_workload


def traced(strategy: str) -> TracedPool:
    """Return the simulated step of a strategy of a small model on two nodes."""
    cluster = load_cluster("h100x16")
    scenario = Scenario(load_catalog_model("olmoe-1b-7b"), cluster, load_workload("chat"), "moiety", load_calibration())
    own = parse_strategy(strategy, 16)
    schedule = Schedule(
        num_microbatches=max(2, own.pp), prefill_tokens=512, prompt_tokens=1024, decode_sequences=8, context_tokens=1024
    )
    options = Options()
    timeline = time_step(scenario, own, schedule, options, place(scenario, own, options)).timeline
    assert timeline is not None
    return TracedPool("mixed", strategy, timeline, tuple(tier.name for tier in cluster.tiers))


POOLS = {name: traced(name) for name in ("ep16", "tp2_pp4_x2")}


def events_of(*names: str) -> list[dict[str, Any]]:
    document = json.loads(chrome_trace([POOLS[name] for name in names], "a title"))
    assert document["otherData"] == {"title": "a title", "ops_left_out": 0}
    events: list[dict[str, Any]] = document["traceEvents"]
    return events


@pytest.mark.parametrize("name", sorted(POOLS))
def test_every_op_is_there_in_microseconds(name: str) -> None:
    timeline = POOLS[name].timeline
    complete = [event for event in events_of(name) if event["ph"] == "X"]
    assert len(complete) == sum(len(task.resources) for task in timeline.steps.tasks)
    assert max(event["ts"] + event["dur"] for event in complete) == pytest.approx(timeline.makespan_s * 1e6, rel=1e-6)
    busy = sum(event["dur"] for event in complete)
    assert busy == pytest.approx(timeline.work_s * 1e6, rel=1e-3)
    assert [event["ts"] for event in complete] == sorted(event["ts"] for event in complete)


@pytest.mark.parametrize("name", sorted(POOLS))
def test_one_stream_does_one_thing_at_a_time(name: str) -> None:
    ends: dict[tuple[int, int], float] = {}
    for event in events_of(name):
        if event["ph"] == "X":
            stream = event["pid"], event["tid"]
            assert event["ts"] >= ends.get(stream, 0.0) - 0.002  # times are rounded to a nanosecond
            ends[stream] = event["ts"] + event["dur"]


def test_streams_are_named_and_pools_have_processes_of_their_own() -> None:
    events = events_of("ep16", "tp2_pp4_x2")
    processes = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    lanes = sum(pool.timeline.steps.num_stages * pool.timeline.steps.num_classes for pool in POOLS.values())
    assert len(processes) == lanes == max(processes)
    assert sum("stage 3" in words for words in processes.values()) == 1
    threads = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert threads == {"compute", "link nvlink", "link infiniband"}
    used = {(event["pid"], event["tid"]) for event in events if event["ph"] == "X"}
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert used <= named
    kinds = {(event["tid"] > 0, event["cat"]) for event in events if event["ph"] == "X"}
    assert kinds == {(False, "compute"), (True, "communication")}


def test_ops_carry_their_layer_and_micro_batch() -> None:
    ops = [event["args"] for event in events_of("ep16") if event["ph"] == "X"]
    assert {each["layer"] for each in ops} == {*range(16), "outside the layers"}
    assert {each["micro_batch"] for each in ops} == {0, 1}


def test_the_same_step_gives_the_same_bytes() -> None:
    assert chrome_trace([traced("ep16")], "t") == chrome_trace([POOLS["ep16"]], "t")


def test_a_long_step_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS", 100)
    document = json.loads(chrome_trace([POOLS["ep16"], POOLS["tp2_pp4_x2"]], "t"))
    kept = sum(event["ph"] == "X" for event in document["traceEvents"])
    every = sum(len(task.resources) for pool in POOLS.values() for task in pool.timeline.steps.tasks)
    assert kept == 100
    assert document["otherData"]["ops_left_out"] == every - 100
