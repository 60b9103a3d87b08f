"""Fully sharded plans of training: sound, frugal, found where they fit or are faster, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.cost.price import Pricer
from moiety.graph.graph import build_graph
from moiety.graph.op import Collective
from moiety.model.attention import GroupedQueryAttention
from moiety.model.feed_forward import DenseFeedForward
from moiety.plan import Options, Plan
from moiety.projection.project import evaluate
from moiety.projection.scenario import scenario_of
from moiety.projection.step import time_graph
from moiety.search.fit import smallest_fitting_gpus
from moiety.search.judge import Judged, Refused, judge
from moiety.search.options import default_options
from moiety.search.search import search
from moiety.strategy.strategy import Strategy, parse_strategy
from moiety.verify.verify import verify_plan
from tests.scenarios import CALIBRATION, decode_load, graph_of, plan_for, scenario, small_model, training_load

CASE = scenario(small_model(), "h100x16", training_load())
STRATEGY = "ep4_tp1_x4"


def planned(*, sharded: bool, strategy: str = STRATEGY, timing: str = "simulated") -> Plan:
    options = default_options(CASE).model_copy(update={"fully_sharded": sharded, "two_batch_overlap": False})
    return evaluate(plan_for(CASE, strategy, options), CALIBRATION, timing=timing).plan


@given(st.sampled_from([(1, 4), (2, 4), (2, 2), (1, 1)]), st.integers(1, 4), st.integers(1, 3))
def test_ranks_of_equal_dense_parameters_are_those_of_all_instances(
    meshes: tuple[int, int], copies: int, pp: int
) -> None:
    tp, attn_dp = meshes
    strategy = Strategy(tp=tp, attn_dp=attn_dp, ep=tp * attn_dp, pp=pp, instances=copies)
    groups = strategy.groups("dp", 3)
    assert sorted(rank for group in groups for rank in group) == list(range(3, 3 + strategy.num_gpus))
    for group in groups:
        places = [strategy.coordinates(rank - 3) for rank in group]
        assert len(group) == attn_dp * copies
        assert len({(place["pp"], place["tp"]) for place in places}) == 1


def test_one_instance_shards_what_its_attention_groups_hold() -> None:
    strategy = Strategy(attn_dp=16, ep=16)
    for options in (Options(fully_sharded=True), Options(fully_sharded=True, dense_parameter_sharding=True)):
        dense = Options(dense_parameter_sharding=True)
        fully, same = (graph_of(small_model(), strategy, "training", each) for each in (options, dense))
        assert fully.ops == same.ops
        plain = graph_of(small_model(), strategy, "decode", Options())
        assert graph_of(small_model(), strategy, "decode", Options(fully_sharded=True)).ops == plain.ops


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("strategy", ["tp1_x16", "ep8_tp1_x2"])
def test_what_gathers_and_scatters_send_between_nodes_is_counted(strategy: str, recomputes: bool) -> None:
    plan = planned(sharded=True, strategy=strategy)
    graph = build_graph(plan.model, plan.pools[0], plan.options)
    checkpointed = frozenset(range(plan.model.num_layers)) if recomputes else frozenset()
    found = time_graph(scenario_of(plan, CALIBRATION), graph, None, timing="folded", checkpointed=checkpointed)
    gathered, scattered = {"dense": 0, "expert": 0}, {"dense": 0, "expert": 0}
    for work, name in ((op.work, op.name) for ops in (*graph.layers, *graph.backward) for op in ops):
        if isinstance(work, Collective) and work.bulk:
            kind = gathered if work.kind == "all_gather" else scattered
            kind[name.split("_")[0]] += int(work.payload_bytes) * plan.model.num_layers
    for op in (*graph.embedding, *graph.update):
        if isinstance(op.work, Collective):
            (gathered if op.work.kind == "all_gather" else scattered)["dense"] += int(op.work.payload_bytes)
    held = {kind: gathered[kind] + scattered[kind] for kind in gathered}
    assert min(held.values()) > 0
    # ranks of a node send on half of what each has: an eighth, where they share it out among themselves before
    inside = {"dense": 8, "expert": 1 if strategy == "ep8_tp1_x2" else 8}
    sent = sum(held[kind] / inside[kind] / 2 for kind in held)
    assert graph.layout.schedule.num_microbatches == 1
    assert found.cross_node_bytes_per_token * graph.layout.tokens == pytest.approx(sent, rel=1e-6)


def test_every_micro_batch_gathers_twice_and_scatters_once_and_the_step_reduces_nothing_else() -> None:
    plan = planned(sharded=True)
    graph = build_graph(plan.model, plan.pools[0], plan.options)
    sent = {
        op.name: (op.work.kind, op.work.axis) for op in graph.ops if isinstance(op.work, Collective) and op.work.bulk
    }
    assert sent == {
        "vocabulary_gather": ("all_gather", "dp"),
        "dense_gather": ("all_gather", "dp"),
        "expert_gather": ("all_gather", "instance"),
        "dense_gather.backward": ("all_gather", "dp"),
        "expert_gather.backward": ("all_gather", "instance"),
        "dense_gradient_reduce": ("reduce_scatter", "dp"),
        "expert_gradient_reduce": ("reduce_scatter", "instance"),
        "vocabulary_gradient_reduce": ("reduce_scatter", "dp"),
    }
    assert "expert_gather" in next(op for op in graph.layers[0] if op.name == "expert_gate_up").inputs
    prices = Pricer(graph, CASE.cluster, CALIBRATION).priced_graph()
    tiers = {price.op.name: price.transfer.tier_bytes for price in prices.layers[0] if price.transfer}
    assert all(tiers["dense_gather"]), "inside nodes and between them"


def test_a_fully_sharded_plan_passes_its_verification_and_reads_back_equal() -> None:
    for strategy in (STRATEGY, "tp2_dp2_ep4_x4", "ep4_tp1_pp2_x2"):
        plan = planned(sharded=True, strategy=strategy)
        assert [each for each in verify_plan(plan, CALIBRATION) if each.severity == "error"] == [], strategy
        assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert "fully_sharded" not in planned(sharded=False).model_dump_json()


def test_the_closed_form_comes_close_to_the_simulation() -> None:
    steps = [planned(sharded=True, timing=timing).projection for timing in ("simulated", "folded", "estimated")]
    whole, *others = [each.step_s for each in steps if each is not None]
    assert others == pytest.approx([whole, whole], rel=0.1)


def test_serving_is_refused_by_name() -> None:
    case = scenario(small_model(), "h100x16", decode_load())
    options = default_options(case).model_copy(update={"fully_sharded": True})
    refused = judge(case, parse_strategy(STRATEGY, 16), options)
    assert isinstance(refused, Refused)
    assert refused.rule == "fully-sharded-trains"


def test_the_search_shards_fully_where_a_plan_would_not_fit_otherwise_and_never_to_be_slower() -> None:
    strategy = parse_strategy(STRATEGY, 16)
    options = default_options(CASE)
    memory = planned(sharded=False).pools[0].memory
    assert memory is not None
    need = memory.total_bytes - memory.bytes_by_kind["stored_activations"]
    device = CASE.cluster.device.model_copy(update={"memory_bytes": need})
    small = CASE.cluster.model_copy(update={"device": device})
    tight = replace(CASE, cluster=small)
    assert isinstance(judge(tight, strategy, options, sharded=False), Refused)
    fits = judge(tight, strategy, options)
    assert isinstance(fits, Judged)
    assert fits.options.fully_sharded
    for case in (CASE, tight):
        found = search(case, options)
        fixed = search(case, options, tune=False)
        assert found.chosen.projection.step_s <= fixed.chosen.projection.step_s
        assert any(line.fully_sharded for line in found.summary.ranking)


def test_the_fewest_gpus_that_do_may_share_out_what_none_holds_alone() -> None:
    attention = GroupedQueryAttention(num_heads=1, num_kv_heads=1, head_dim=1024)
    model = small_model(attention, DenseFeedForward(intermediate_size=65_536), num_layers=1)
    whole = evaluate(plan_for(scenario(model, "h100x1", training_load()), "tp1", Options()), CALIBRATION).plan
    memory = whole.pools[0].memory
    assert memory is not None
    held = memory.bytes_by_kind
    state = sum(held[kind] for kind in ("dense_weights", "embedding_and_head", "gradients", "optimizer_state"))
    device = CASE.cluster.device.model_copy(update={"memory_bytes": held["engine_reserve"] + int(0.75 * state)})
    tight = replace(CASE, model=model, cluster=CASE.cluster.model_copy(update={"device": device}))
    enough = smallest_fitting_gpus(tight, Options())
    assert enough is not None
    assert enough > 1
    assert smallest_fitting_gpus(tight, Options(), tune=False) is None  # where nobody may share
