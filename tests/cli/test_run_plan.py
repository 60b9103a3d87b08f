"""The plan of a run: folded plans are sound plans, with the load's share and the experts placed anew."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from moiety.cli.run_plan import MOST_PROMPT_TOKENS, MOST_RANK_TOKENS, Folding, check_runnable, folded, with_exchange
from moiety.cli.verification import refuse_unsound
from moiety.errors import InputError
from moiety.projection.project import evaluate
from moiety.search.options import default_options
from tests.routed import routed_plan
from tests.runtime.plans import CPU, cluster_of
from tests.scenarios import (
    CALIBRATION,
    GQA,
    LINEAR,
    LOADS,
    MAMBA,
    evaluated,
    moe,
    prefill_load,
    scenario,
    served_plan,
    small_model,
)

if TYPE_CHECKING:
    from moiety.cluster.cluster import Cluster
    from moiety.model.model import Model
    from moiety.plan import Phase, Plan

COPY = small_model(GQA.model_copy(update={"head_dim": 32}), moe(4, 2), num_layers=2).model_copy(
    update={"name": "copy", "weight_dtype": "fp32", "expert_dtype": "fp32"}
)


def fold_onto(plan: Plan, num_ranks: int, model: Model | None = None) -> Folding:
    """Fold on a machine whose speed is not measured."""

    def here(spelling: str) -> Cluster:
        nodes, _, per_node = spelling.removeprefix("local:").rpartition("x")
        return cluster_of(CPU, int(nodes or 1), int(per_node))

    return folded(plan, num_ranks, model or plan.model, here)


@pytest.mark.parametrize("role", sorted(LOADS))
@pytest.mark.parametrize("num_ranks", [1, 2, 4, 6])
def test_a_folded_plan_is_sound_whatever_it_is_for(role: Phase, num_ranks: int) -> None:
    case = scenario(small_model(), "h100x16", LOADS[role])
    options = default_options(case).model_copy(update={"dense_parameter_sharding": False})
    folding = fold_onto(evaluated(case, "ep8_tp2", options), num_ranks)
    made = folding.plan
    refuse_unsound(made, CALIBRATION, "folded")
    assert made.num_gpus == num_ranks
    assert made.cluster.num_nodes == (2 if num_ranks > 1 else 1)
    assert made.projection is not None
    assert evaluate(made, CALIBRATION).plan.pools[0].placement == made.pools[0].placement
    assert folding.document()["reasons"] == list(folding.fold.reasons)


def test_the_load_shrinks_with_the_ranks_and_to_what_a_cpu_computes_in_a_moment() -> None:
    plan = served_plan()
    assert plan.workload.tokens_per_batch // 4 > 4 * MOST_RANK_TOKENS
    made = fold_onto(plan, 4).plan
    assert made.workload.tokens_per_batch == 4 * MOST_RANK_TOKENS
    assert made.workload.input_tokens == MOST_PROMPT_TOKENS < plan.workload.input_tokens
    small = plan.model_copy(update={"workload": plan.workload.model_copy(update={"tokens_in_flight": 16_384})})
    assert fold_onto(small, 4).plan.workload.tokens_per_batch == 16_384 // 4


def test_an_arrival_rate_becomes_requests_in_flight() -> None:
    rate = LOADS["mixed"].model_copy(update={"concurrency": None, "request_rate_per_s": 50.0})
    case = scenario(small_model(), "h100x16", LOADS["mixed"])
    plan = evaluated(case, "ep16_tp1").model_copy(update={"workload": rate})
    made = fold_onto(plan, 4).plan
    assert made.workload.request_rate_per_s is None
    assert made.workload.concurrency == LOADS["mixed"].concurrency // 4


def test_a_little_load_is_more_than_its_share_where_groups_would_idle() -> None:
    case = scenario(small_model(), "h100x16", LOADS["decode"].model_copy(update={"concurrency": 2}))
    made = fold_onto(evaluated(case, "ep2_tp8"), 4).plan
    assert made.pools[0].schedule.decode_sequences >= 1


def test_measured_routing_places_the_experts_anew_by_the_same_method() -> None:
    plan = routed_plan()
    made = fold_onto(plan, 4).plan
    assert made.options.placement == plan.options.placement == "joint"
    assert made.expert_shares == plan.expert_shares
    assert made.options.redundant_experts == plan.options.redundant_experts // 2


def test_a_scaled_down_copy_takes_the_formats_of_its_checkpoint_and_experts_in_order() -> None:
    folding = fold_onto(routed_plan(), 4, COPY)
    made = folding.plan
    assert folding.is_scaled_down
    assert made.model == COPY
    assert (made.options.placement, made.expert_shares) == ("linear", None)
    assert made.options.dtypes.weights == made.options.dtypes.activations == "fp32"
    assert "copy stands for small" in folding.sentence()


def test_folding_only_makes_fewer() -> None:
    with pytest.raises(InputError, match="--fold = 17: the plan has 16 ranks"):
        fold_onto(served_plan(), 17)


def test_another_exchange_is_predicted_anew() -> None:
    plan = evaluated(scenario(small_model(), "h100x16", prefill_load()), "ep16_tp1")
    flat = with_exchange(plan, "flat", CALIBRATION)
    assert flat.options.all_to_all == "flat"
    assert flat.projection is not None
    assert plan.projection is not None
    assert flat.projection.step_s > plan.projection.step_s


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"attention": MAMBA}, "attention.variant = mamba2: a Mamba-2 layer is planned but not executed"),
        ({"attention": LINEAR}, "attention.variant = gated_delta: linear attention is planned but not executed"),
        ({"attention": None}, "attention = null: a layer without attention is planned but not executed"),
        ({"feed_forward": None}, "feed_forward = null: a layer without a feed-forward part is planned but not"),
        ({"feed_forward": moe().model_copy(update={"gated": False})}, "gated = false: a feed-forward part without"),
        ({"feed_forward": moe().model_copy(update={"latent_size": 64})}, "latent_size = 64: a mixture of experts in a"),
    ],
)
def test_a_layer_that_there_is_no_module_for_is_refused_by_name(layer: dict[str, object], message: str) -> None:
    plan = served_plan()
    block = plan.model.blocks[0].model_copy(update=layer)
    model = plan.model.model_copy(update={"blocks": (block, *plan.model.blocks[1:])})
    with pytest.raises(InputError, match=re.escape(message)):
        check_runnable(plan.model_copy(update={"model": model}), "p.json")


def test_a_plan_of_several_pools_is_refused() -> None:
    plan = served_plan()
    check_runnable(plan, "p.json")
    with pytest.raises(InputError, match=r"p\.json: pools = 'prefill \+ prefill': run executes plans of one pool"):
        check_runnable(plan.model_copy(update={"pools": plan.pools * 2}), "p.json")
