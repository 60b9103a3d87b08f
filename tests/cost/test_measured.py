"""Prices by measured tables: where they cover an op, where they must not, and on slower machines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from moiety.cluster.catalog import load_cluster
from moiety.cost.price import Pricer
from moiety.graph.op import Gemm
from moiety.model.attention import MultiHeadLatentAttention
from moiety.model.feed_forward import DenseFeedForward
from moiety.plan import Options
from moiety.projection.project import evaluate
from moiety.strategy.strategy import Strategy
from tests.measured_tables import FILES, RELEASE, attention_rows, gemm_ms, gemm_rows, moe_rows, tables_for
from tests.scenarios import CALIBRATION, decode_load, graph_of, plan_for, scenario, small_model

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.cluster.cluster import Cluster
    from moiety.cost.price import OpPrice
    from moiety.plan import Phase

NODE, NODES = load_cluster("h100x8"), load_cluster("h100x16")
ALONE = Options(two_batch_overlap=False)


def measured(cluster: Cluster = NODE, changed: dict[str, list[dict[str, object]]] | None = None) -> Calibration:
    return CALIBRATION.model_copy(update={"tables": tables_for(cluster, changed)})


def prices(
    strategy: Strategy, calibration: Calibration, phase: Phase = "decode", cluster: Cluster = NODE, load: float = 1.0
) -> dict[str, OpPrice]:
    graph = graph_of(small_model(), strategy, phase, ALONE)
    priced = Pricer(graph, cluster, calibration).priced_graph(load)
    return {price.op.name: price for price in (priced.backward or priced.layers)[0]}


def test_ops_that_are_covered_take_what_was_measured() -> None:
    found = prices(Strategy(), measured())
    work = found["o_proj"].op.work
    assert isinstance(work, Gemm)
    assert found["o_proj"].seconds == pytest.approx(gemm_ms(work.m, work.n, work.k) / 1e3)
    assert found["attention"].seconds == pytest.approx(1e-8 * 512 * 256)
    experts = found["expert_gate_up"].seconds + found["expert_down"].seconds
    assert experts == pytest.approx(2e-6 * 512)
    assert {name for name, price in found.items() if price.origin == "law"} == {
        *("input_norm", "post_norm", "router", "residual_add"),  # passes over memory, and logits in FP32
    }


def test_nothing_changes_where_the_tables_cover_nothing() -> None:
    far = {f"gemm/{RELEASE}/gemm_perf.parquet": gemm_rows("fp8")}
    one, other = prices(Strategy(), measured(changed=far)), prices(Strategy(), CALIBRATION)
    assert one["o_proj"] == other["o_proj"]


def test_all_reduces_inside_a_node_are_measured_and_across_nodes_never() -> None:
    inside = prices(Strategy(tp=8, etp=8), measured(NODES), cluster=NODES)["attn_all_reduce"]
    assert inside.origin == "table"
    assert inside.seconds == pytest.approx(1e-9 * 512 * 1024)  # 1 us for each 1,000 elements
    across = prices(Strategy(tp=16, etp=16), measured(NODES), cluster=NODES)["attn_all_reduce"]
    assert across.origin == "law"
    assert across == prices(Strategy(tp=16, etp=16), CALIBRATION, cluster=NODES)["attn_all_reduce"]


def test_a_rack_that_is_one_domain_of_links_still_has_nodes() -> None:
    rack = load_cluster("gb200-nvl72")
    assert rack.gpus_per_node < 8 <= rack.fast_domain_gpus
    assert prices(Strategy(tp=8, etp=8), measured(rack), cluster=rack)["attn_all_reduce"].origin == "law"
    assert prices(Strategy(tp=2, etp=2), measured(rack), cluster=rack)["attn_all_reduce"].origin == "table"


def test_prompts_take_the_all_reduce_that_no_graph_holds() -> None:
    prompt = prices(Strategy(tp=2, etp=2), measured(), "prefill")["attn_all_reduce"]
    assert prompt.seconds == pytest.approx(5e-9 * 512 * 1024)


def test_experts_that_tokens_are_dispatched_to_are_another_kernel() -> None:
    rows = {f"moe/{RELEASE}/moe_perf.parquet": moe_rows(moe_ep_size=8)}
    dispatched = prices(Strategy(attn_dp=8, ep=8), measured(changed=rows))
    present = prices(Strategy(tp=8, ep=8), measured(changed=rows))
    assert dispatched["expert_down"].origin == dispatched["dispatch"].origin == "law"
    assert present["expert_down"].origin == "table"
    fuller = prices(Strategy(tp=8, ep=8), measured(changed=rows), load=1.5)
    assert fuller["expert_down"].seconds == pytest.approx(1.5 * present["expert_down"].seconds)


@pytest.mark.parametrize("part", ["link", "clock"])
def test_a_slower_machine_takes_longer_by_the_law(part: str) -> None:
    strategy = Strategy(tp=8, etp=8)
    tiers, device = list(NODE.tiers), NODE.device
    if part == "link":
        tiers[0] = tiers[0].model_copy(update={"bandwidth_bytes_per_s": tiers[0].bandwidth_bytes_per_s / 4})
    else:
        peaks = {name: peak / 4 for name, peak in device.peak_flops_per_s.items()}
        device = device.model_copy(update={"peak_flops_per_s": peaks})
    slower = NODE.model_copy(update={"tiers": tuple(tiers), "device": device})
    name = "attn_all_reduce" if part == "link" else "attention"
    (one, other), (law, slow_law) = (
        (prices(strategy, each, "prefill")[name], prices(strategy, each, "prefill", slower)[name])
        for each in (measured(changed=_four_times(strategy)), CALIBRATION)
    )
    assert one.origin == "table"
    assert other.origin == "scaled"
    assert other.seconds / one.seconds == pytest.approx(slow_law.seconds / law.seconds)
    assert other.seconds > one.seconds


def test_latent_attention_counts_only_with_the_heads_it_was_measured_with() -> None:
    heads = MultiHeadLatentAttention(
        num_heads=128, q_lora_rank=256, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    )
    narrow = heads.model_copy(update={"v_head_dim": 64})
    for attention, origin in ((heads, "table"), (narrow, "law")):
        for phase in ("prefill", "decode"):
            graph = graph_of(small_model(attention), Strategy(), phase, ALONE)
            found = {each.op.name: each for each in Pricer(graph, NODE, measured()).priced_graph().layers[0]}
            assert found["attention"].origin == origin
            if origin == "table":
                assert found["attention"].seconds == pytest.approx(3e-8 * 512 * (256 if phase == "decode" else 1))


def test_backward_passes_are_priced_by_the_law() -> None:
    found = prices(Strategy(), measured(), "training")
    assert {price.origin for price in found.values()} == {"law"}
    assert sum(price.op.flops > 0 for price in found.values()) > 4


def test_a_plan_says_what_is_measured() -> None:
    calibration = measured()
    assert calibration.tables is not None
    case = replace(scenario(small_model(), NODE, decode_load()), calibration=calibration)
    plan = evaluate(plan_for(case, "ep1_tp1_x8", ALONE), case.calibration).plan
    covered = plan.pools[0].tables
    assert covered is not None
    assert covered.by_law == ("router",)
    assert covered.ops == 6 * 6 + 1  # of 6 layers, and the head
    assert covered.covered_ops == covered.ops - 6
    assert 0.5 < covered.covered_seconds_share < 1
    assert plan.provenance.tables == calibration.tables.source
    assert plan.projection is not None
    assert plan.projection.provenance["exposed_communication_fraction"] == "fitted"
    by_law = evaluate(plan_for(case, "ep1_tp1_x8", ALONE), CALIBRATION).plan
    assert by_law.pools[0].tables is None


def test_a_figure_rests_on_measurements_where_no_op_needs_a_law() -> None:
    shapes = {f"attention/{RELEASE}/generation_attention_perf.parquet": attention_rows(8, 2, decode=True)}
    model = small_model(part=DenseFeedForward(intermediate_size=2048))
    case = replace(scenario(model, NODE, decode_load()), calibration=measured(changed=shapes))
    for calibration, basis in ((case.calibration, "measured"), (CALIBRATION, "fitted")):
        plan = evaluate(plan_for(case, "tp2_x4", ALONE), calibration).plan
        assert plan.projection is not None
        assert plan.projection.provenance["exposed_communication_fraction"] == basis
        assert plan.projection.provenance["step_s"] == "assumed"  # the engine's overhead


def _four_times(strategy: Strategy) -> dict[str, list[dict[str, object]]]:
    """Return attention rows for the heads that one rank of the strategy has."""
    path = f"attention/{RELEASE}/context_attention_perf.parquet"
    return {path: [{**row, "num_heads": 16 // strategy.tp, "num_key_value_heads": 1} for row in FILES[path]]}
