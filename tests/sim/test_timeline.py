"""Timelines of steps: bounds, overlap, pipelines, classes."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from moiety.cost.price import Pricer
from moiety.plan import Options, Phase, Schedule
from moiety.sim.op_list import BULK_CHUNK_S
from moiety.sim.step import RankClass
from moiety.sim.timeline import Timeline, merge, simulate_step
from moiety.sim.units import stage_units
from moiety.strategy.strategy import Strategy, parse_strategy
from tests.scenarios import CALIBRATION, GQA, MLA, dense_model, graph_of, moe, schedule_of, small_model, tiered

if TYPE_CHECKING:
    from moiety.model.model import Model

CLUSTER = tiered(8, 16, per_node=8)
PHASES: list[Phase] = ["prefill", "decode", "mixed", "training"]


def timeline_of(
    model: Model,
    strategy: Strategy,
    phase: Phase = "prefill",
    options: Options | None = None,
    *,
    loads: tuple[float, ...] = (1.0,),
    schedule: Schedule | None = None,
) -> Timeline:
    graph = graph_of(model, strategy, phase, options)
    if schedule is not None:
        graph = replace(graph, layout=replace(graph.layout, schedule=schedule))
    pricer = Pricer(graph, CLUSTER, CALIBRATION)
    classes = [RankClass(f"load {load}", 1, (pricer.priced_graph(load),) * model.num_layers) for load in loads]
    return simulate_step(classes)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", ["ep16_tp1", "ep8_tp2", "tp2_dp4_ep8_pp2", "tp1_pp2_x8", "tp1_x16", "tp8_dp1_ep8_pp2"])
@pytest.mark.parametrize("overlap", [True, False])
def test_a_step_lies_between_its_critical_path_and_the_sum_of_its_work(phase: Phase, name: str, overlap: bool) -> None:
    options = Options(two_batch_overlap=overlap, dense_parameter_sharding=phase == "training")
    strategy = parse_strategy(name, 16)
    timeline = timeline_of(small_model(), strategy, phase, options)
    assert 0 < timeline.critical_path_s <= timeline.makespan_s * (1 + 1e-12)
    assert timeline.makespan_s <= timeline.work_s
    assert timeline == timeline_of(small_model(), strategy, phase, options)
    for exposed, moving, busy in zip(
        timeline.exposed_s, timeline.communication_s, timeline.compute_busy_s, strict=True
    ):
        assert 0 <= exposed <= moving <= timeline.makespan_s
        assert 0 < busy <= timeline.makespan_s
        assert exposed + busy <= timeline.makespan_s * (1 + 1e-12)
    assert 0 <= timeline.overlap_fraction <= 1
    assert 0 <= timeline.exposed_fraction <= 1


@pytest.mark.parametrize("phase", PHASES)
def test_every_op_runs_as_often_as_there_are_layers_and_micro_batches(phase: Phase) -> None:
    model = small_model(MLA, moe(shared=512), dense_layers=2)
    timeline = timeline_of(model, parse_strategy("ep4_tp2_pp2", 16), phase, Options(priority_scheduling=False))
    done = Counter(task.name for task in timeline.steps.tasks)
    assert done["input_norm"] == model.num_layers * 2
    assert done["expert_down"] == 4 * 2
    assert done["embedding"] == done["lm_head"] == 2
    assert done["stage_send"] == 2 * (2 if phase == "training" else 1)
    assert done["optimizer"] == (2 if phase == "training" else 0)
    assert done["input_norm.backward"] == (model.num_layers * 2 if phase == "training" else 0)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_two_batches_hide_communication(phase: Phase) -> None:
    strategy = parse_strategy("ep16_tp1", 16)
    one, two = (timeline_of(small_model(), strategy, phase, Options(two_batch_overlap=on)) for on in (False, True))
    assert two.overlap_fraction > one.overlap_fraction + 0.2
    assert two.makespan_s < one.makespan_s
    assert max(two.exposed_s) <= max(two.communication_s)


def test_bulk_transfers_wait_no_longer_than_a_chunk_delays() -> None:
    strategy, options = parse_strategy("ep8_tp2", 16), Options(dense_parameter_sharding=True)
    timeline = timeline_of(small_model(num_layers=12), strategy, "training", options)
    tasks, start = timeline.steps.tasks, timeline.start_s
    bulk = [i for i, task in enumerate(tasks) if task.priority]
    assert bulk
    assert max(tasks[i].duration_s for i in bulk) <= BULK_CHUNK_S
    ends = [begin + task.duration_s for begin, task in zip(start, tasks, strict=True)]
    for index, task in enumerate(tasks):
        if task.priority or not task.resources:
            continue
        ready = max((ends[before] for before in task.after), default=0.0)
        # the bulk chunks that hold its link between its being ready and its start
        delays = [ends[i] - ready for i in bulk if tasks[i].resources == task.resources and start[i] < start[index]]
        assert all(delay <= BULK_CHUNK_S + 1e-12 for delay in delays)


def test_without_priorities_bulk_transfers_go_in_one_piece() -> None:
    strategy = parse_strategy("ep8_tp2", 16)
    options = Options(dense_parameter_sharding=True, priority_scheduling=False)
    names = Counter(task.name for task in timeline_of(small_model(), strategy, "training", options).steps.tasks)
    assert names["dense_gather"] == 6 * 2 * 2  # layers x micro-batches x tiers


def test_gradients_are_reduced_in_the_background_and_before_the_update() -> None:
    strategy, options = Strategy(attn_dp=4, ep=4, instances=2), Options(priority_scheduling=False)
    timeline = timeline_of(small_model(), strategy, "training", options)
    tasks, start = timeline.steps.tasks, timeline.start_s
    reductions = [i for i, task in enumerate(tasks) if "gradient" in task.name]
    update = next(i for i, task in enumerate(tasks) if task.name == "optimizer")
    assert {tasks[i].name for i in reductions} == {
        "dense_gradient_reduce",
        "dense_gradient_all_reduce",
        "expert_gradient_all_reduce",
        "vocabulary_gradient_reduce",
        "vocabulary_gradient_all_reduce",
    }
    assert all(start[i] + tasks[i].duration_s <= start[update] for i in reductions)
    layers = [task for task, layer in zip(tasks, timeline.steps.layers, strict=True) if layer >= 0]
    waited = {before for task in layers for before in task.after}
    assert {tasks[i].name for i in reductions if i in waited} <= {"dense_gradient_reduce"}


@pytest.mark.parametrize("sharded", [False, True])
def test_layers_run_one_after_the_other_and_backward_in_reverse(sharded: bool) -> None:
    options = Options(dense_parameter_sharding=sharded, two_batch_overlap=False)
    timeline = timeline_of(small_model(), Strategy(attn_dp=4, ep=4, instances=2), "training", options)
    steps, start = timeline.steps, timeline.start_s
    spans: list[list[tuple[float, float]]] = []
    for direction in ("forward", "backward"):
        span = [(float("inf"), 0.0)] * 6
        for index, task in enumerate(steps.tasks):
            backward = task.name.endswith(".backward")
            if steps.microbatches[index] or steps.layers[index] < 0 or task.priority or not task.resources:
                continue
            if backward is (direction == "backward"):
                low, high = span[steps.layers[index]]
                span[steps.layers[index]] = (min(low, start[index]), max(high, start[index] + task.duration_s))
        spans.append(span)
    forward, backward = spans[0], spans[1][::-1]
    for order in (forward, backward):
        assert all(one[1] <= other[0] + 1e-12 for one, other in itertools.pairwise(order))
    assert forward[-1][1] <= backward[0][0]


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 1), (2, 8), (4, 4), (4, 3), (4, 16)])
def test_one_forward_one_backward(stages: int, microbatches: int) -> None:
    for stage in range(stages):
        units = stage_units(stage, stages, microbatches, training=True)
        assert Counter((u.direction, u.microbatch) for u in units) == Counter(
            (direction, m) for direction in ("forward", "backward") for m in range(microbatches)
        )
        in_flight, most = 0, 0
        for unit in units:
            in_flight += 1 if unit.direction == "forward" else -1
            most = max(most, in_flight)
        assert most == min(stages - stage, microbatches)
    assert all(u.direction == "forward" for u in stage_units(0, 4, 8, training=False))


@pytest.mark.parametrize(("stages", "microbatches"), [(2, 4), (4, 8), (8, 8)])
@pytest.mark.parametrize("phase", ["prefill", "training"])
def test_the_bubble_of_equal_stages(stages: int, microbatches: int, phase: Phase) -> None:
    model = dense_model(num_layers=32)
    options = Options(two_batch_overlap=False)
    schedule = schedule_of(phase, 4096, microbatches=microbatches)
    base = graph_of(model, Strategy(pp=stages), phase, options)
    graph = replace(base, layout=replace(base.layout, schedule=schedule))
    pricer = Pricer(graph, CLUSTER, CALIBRATION)
    timeline = simulate_step([RankClass("all", 1, (pricer.priced_graph(),) * 32)])
    idle = 1 - sum(timeline.compute_busy_s) / stages / timeline.makespan_s
    assert idle == pytest.approx((stages - 1) / (microbatches + stages - 1), abs=0.05)


def test_equal_ranks_are_one_class_whatever_their_number() -> None:
    sizes = {
        ranks: len(timeline_of(small_model(part=moe(64)), Strategy(attn_dp=ranks, ep=ranks)).steps.tasks)
        for ranks in (8, 16)
    }
    assert sizes[8] * 1.3 > sizes[16] >= sizes[8]  # one more tier of links, no more ranks


def test_the_slowest_class_holds_the_others_up_at_every_exchange() -> None:
    strategy = Strategy(attn_dp=16, ep=16)
    even, uneven = (timeline_of(small_model(), strategy, loads=loads) for loads in ((1.0,), (2.0, 1.0)))
    alone = timeline_of(small_model(), strategy, loads=(2.0,))
    assert uneven.makespan_s > even.makespan_s
    assert uneven.makespan_s == pytest.approx(alone.makespan_s, rel=0.02)
    assert uneven.compute_busy_s[0] > uneven.compute_busy_s[1]
    assert len(uneven.compute_busy_s) == 2


def test_pipelines_without_collectives_still_send() -> None:
    timeline = timeline_of(small_model(GQA), Strategy(pp=2), options=Options(two_batch_overlap=False))
    assert timeline.communication_s[0] > 0
    assert timeline.occupied_s < timeline.makespan_s


def test_intervals_are_merged() -> None:
    assert merge([(3, 4), (0, 1), (0.5, 2), (2, 2.5)]) == [(0, 2.5), (3, 4)]
