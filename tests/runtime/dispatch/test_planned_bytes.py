"""FP8 rows take the bytes that the plan counts: a code for each value, a scale for every 128 of a row."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from moiety.graph.op import Collective
from moiety.plan import DtypePolicy, Options
from moiety.runtime.dispatch.quantize import quantized
from moiety.strategy.strategy import Strategy
from tests.scenarios import graph_of, moe, small_model


@pytest.mark.parametrize(
    "strategy", [Strategy(attn_dp=4, ep=4), Strategy(attn_dp=4, etp=4)], ids=["routed", "gathered"]
)
def test_planned_rows_are_as_large_as_quantized_ones(strategy: Strategy) -> None:
    options = Options(dtypes=DtypePolicy(dispatch="fp8", weights="fp8", experts="fp8"))
    graph = graph_of(small_model(part=moe()), strategy, options=options)
    ops = {op.name: op for op in graph.layers[0]}
    op = ops["dispatch"] if "dispatch" in ops else ops["token_all_gather"]
    assert op.output is not None
    codes, scales = quantized(torch.ones(3, graph.model.hidden_size))
    row_bytes = (codes.nbytes + scales.nbytes) // 3
    assert op.output.size_bytes == op.output.shape[0] * row_bytes
    assert isinstance(op.work, Collective)
    rows = 1 if op.name == "dispatch" else op.output.shape[0]
    assert op.work.payload_bytes == rows * row_bytes
    (weight,) = ops["expert_gate_up"].weights
    slots, width, hidden = weight.shape
    blocks = slots * (width // 128) * (hidden // 128)
    assert weight.size_bytes == slots * width * hidden + 4 * blocks, "weights have a scale for every 128 x 128"
