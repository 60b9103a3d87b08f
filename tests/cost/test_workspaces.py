"""What ops take beside their results: on CPUs, by the run time's own rules; on GPUs the matrices that are expanded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from moiety.cost.few_rows import are_few, is_turned, room_items
from moiety.cost.workspaces import MOST_PAIRS, Workspaces
from moiety.plan import DtypePolicy, Options
from moiety.strategy.strategy import Strategy
from tests.scenarios import graph_of, small_model

if TYPE_CHECKING:
    from moiety.graph.graph import Graph


def names(graph: Graph, *, on_cpu: bool) -> set[str]:
    """Return the names of all workspaces of the first layer."""
    return {each.name for each in Workspaces(graph, on_cpu).of_layer(0)}


def decoding(strategy: Strategy, options: Options) -> Graph:
    """Return a step of decoding of a small model."""
    return graph_of(small_model(), strategy, "decode", options)


def test_kernels_of_gpus_take_nothing_beside_their_results_and_expand_dense_weights() -> None:
    plain = decoding(Strategy(), Options(dtypes=DtypePolicy(weights="bf16", experts="bf16")))
    assert names(plain, on_cpu=False) == set()
    in_codes = decoding(Strategy(), Options(dtypes=DtypePolicy(weights="fp8", experts="fp8")))
    found = names(in_codes, on_cpu=False)
    assert "o_proj.expanded" in found
    assert {each.rpartition(".")[2] for each in found} == {"expanded"}
    assert not any(each.startswith("expert_") for each in found)


def test_on_cpus_only_products_in_fp32_are_turned() -> None:
    formats = ("weights", "experts", "activations")
    in_fp32, in_bf16 = (
        names(decoding(Strategy(), Options(dtypes=DtypePolicy(**dict.fromkeys(formats, dtype)))), on_cpu=True)
        for dtype in ("fp32", "bf16")
    )
    assert "attention.scores" in in_fp32 & in_bf16
    assert {"expert_gate_up.room", "expert_down.room"}.isdisjoint(in_bf16)
    assert "expert_gate_up.rows" in in_fp32 & in_bf16


def test_steps_of_more_pairs_than_are_noted_have_room_for_the_rows_that_are_expected() -> None:
    graph = decoding(Strategy(attn_dp=4, ep=4), Options())
    moe = graph.model.moe
    assert moe is not None
    assert graph.layout.stage_tokens * moe.top_k > MOST_PAIRS
    assert "expert_gate_up.elsewhere" not in names(graph, on_cpu=True)


@given(most=st.integers(0, 40), inner=st.integers(1, 2000), outer=st.integers(1, 50), rows=st.integers(1, 40))
def test_room_for_some_rows_is_room_for_fewer(most: int, inner: int, outer: int, rows: int) -> None:
    if rows <= most and is_turned(rows, inner):
        assert room_items(most, inner, outer) >= room_items(rows, inner, outer) >= rows * outer
    assert are_few(rows, most) or rows > most
