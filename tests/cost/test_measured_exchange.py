"""Dispatch and combine by measured tables: over ranks that lie as they did; elsewhere slower as the law says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from moiety.cli.table_files import load_tables
from moiety.cluster.catalog import load_cluster
from moiety.cost.price import OpPrice, Pricer
from moiety.plan import DtypePolicy, Options
from moiety.strategy.strategy import Strategy
from tests.measured_tables import RELEASE, deep_ep_rows, engine_exchange_rows, one_sided_rows, tables_for, write_folder
from tests.scenarios import CALIBRATION, graph_of, small_model

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.cluster.cluster import Cluster
    from moiety.plan import Phase
    from tests.measured_tables import Row

LOW_LATENCY = f"comm/{RELEASE}/wideep_deepep_ll_perf.parquet"
ENGINE = f"comm/{RELEASE}/moe_a2a_perf.parquet"
ONE_SIDED = f"comm/{RELEASE}/trtllm_alltoall_perf.parquet"
NODE, NODES = load_cluster("h100x8"), load_cluster("h100x16")
RACK = load_cluster("gb200-nvl72x16")


def exchanges(
    cluster: Cluster,
    changed: dict[str, list[Row]],
    phase: Phase = "decode",
    *,
    ep: int | None = None,
    load: float = 1.0,
    now: Cluster | None = None,
    redundant: int = 0,
) -> tuple[OpPrice, OpPrice]:
    """Return dispatch and combine; the tables count for `cluster`, and `now` is what the plan has."""
    ranks = ep or cluster.num_gpus
    policy = DtypePolicy(weights="bf16", experts="bf16", dispatch="fp8")
    options = Options(two_batch_overlap=False, redundant_experts=redundant, dtypes=policy)
    graph = graph_of(small_model(), Strategy(attn_dp=ranks, ep=ranks), phase, options)
    calibration = CALIBRATION.model_copy(update={"tables": tables_for(cluster, changed)})
    priced = Pricer(graph, now or cluster, calibration).priced_graph(load).layers[0]
    dispatch, combine = (price for price in priced if price.op.name in {"dispatch", "combine"})
    return dispatch, combine


def per_token_us(price: OpPrice) -> float:
    tokens = price.op.work.tokens  # pyright: ignore[reportAttributeAccessIssue] - exchanges alone are asked
    return 1e6 * price.seconds / tokens


@pytest.mark.parametrize(("cluster", "nodes"), [(NODE, 1), (NODES, 2)])
def test_whole_nodes_take_what_as_many_nodes_took(cluster: Cluster, nodes: int) -> None:
    dispatch, combine = exchanges(cluster, {LOW_LATENCY: deep_ep_rows()})
    assert (per_token_us(dispatch), per_token_us(combine)) == (pytest.approx(nodes), pytest.approx(2 * nodes))
    assert (dispatch.origin, combine.origin) == ("table", "table")


def test_one_node_says_nothing_of_two_and_a_part_of_a_node_nothing_of_all() -> None:
    alone = {LOW_LATENCY: deep_ep_rows((1,)), ENGINE: engine_exchange_rows(16, 1)}
    assert {each.origin for each in exchanges(NODES, alone)} == {"law"}
    assert {each.origin for each in exchanges(NODE, {LOW_LATENCY: deep_ep_rows()}, ep=4)} == {"law"}


@pytest.mark.parametrize(("phase", "us"), [("decode", 3), ("prefill", 5)])
def test_an_engine_has_kernels_for_few_tokens_and_for_many(phase: Phase, us: float) -> None:
    dispatch, combine = exchanges(NODE, {ENGINE: engine_exchange_rows()}, phase, ep=4)
    assert (per_token_us(dispatch), per_token_us(combine)) == (pytest.approx(us), pytest.approx(us))
    other = exchanges(NODE, {ENGINE: engine_exchange_rows(dtype="default")}, phase, ep=4)
    assert [each.origin for each in other] == ["law", "table"]


def test_one_sided_exchanges_hold_inside_their_domain_whatever_its_nodes() -> None:
    dispatch, combine = exchanges(RACK, {ONE_SIDED: one_sided_rows()})
    assert (per_token_us(dispatch), per_token_us(combine)) == (pytest.approx(7), pytest.approx(7))
    assert {each.origin for each in exchanges(NODES, {ONE_SIDED: one_sided_rows()})} == {"law"}


def test_a_busy_rank_and_a_slower_network_take_longer_by_the_law() -> None:
    rows = {LOW_LATENCY: deep_ep_rows()}
    slow = NODES.model_copy(
        update={
            "tiers": (
                NODES.tiers[0],
                NODES.tiers[1].model_copy(update={"bandwidth_bytes_per_s": NODES.tiers[1].bandwidth_bytes_per_s / 2}),
            )
        }
    )
    plain, _ = exchanges(NODES, rows)
    for found, _ in (exchanges(NODES, rows, now=slow), exchanges(NODES, rows, load=2.0)):
        assert found.seconds > plain.seconds
        assert found.origin == "scaled"


def test_second_copies_of_experts_are_not_in_the_tables() -> None:
    assert {each.origin for each in exchanges(NODE, {LOW_LATENCY: deep_ep_rows()}, redundant=8)} == {"law"}


def test_another_release_of_the_engine_stands_in_for_one_without_exchanges(tmp_path: Path) -> None:
    older, newer = (f"comm/vllm/{release}/wideep_deepep_ll_perf.parquet" for release in ("0.9.0", "0.23.0"))
    folder = write_folder(tmp_path, {older: deep_ep_rows((2,)), newer: deep_ep_rows((1,))})
    found = load_tables(f"{folder}:{RELEASE}", NODE)
    key = ("dispatch", "decode", "fp8", 1024, 2, 16, "nodes")
    assert found.seconds((*key, 1), 100) == pytest.approx(1e-4)
    assert found.seconds((*key, 2), 100) is None
