"""The summary DAG fits on a page and agrees with the plan."""

from __future__ import annotations

import pytest

from moiety.graph.graph import build_graph
from moiety.report.segments import step_segments
from moiety.report.summary_dag import summary_dot, summary_drawing
from tests.report.deployments import DEPLOYMENTS, deployment, some_projection
from tests.report.dot_graph import read_dot, topological_order

NAMES = sorted(DEPLOYMENTS)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_one_dag_from_input_to_output(name: str) -> None:
    plan = deployment(name)
    graph = read_dot(summary_dot(plan))
    assert set(topological_order(graph)) == set(graph.nodes)
    for pool in plan.pools:
        reached = {f"p{pool.first_rank}_input"}
        for key in topological_order(graph):
            if any(tail in reached and head == key for tail, head in graph.edges):
                reached.add(key)
        assert f"p{pool.first_rank}_output" in reached


@pytest.mark.parametrize("name", NAMES)
def test_every_op_is_in_one_step(name: str) -> None:
    plan = deployment(name)
    graph = read_dot(summary_dot(plan))
    for pool in plan.pools:
        expected = sorted(
            (segment.key, op.name)
            for segment in step_segments(build_graph(plan.model, pool, plan.options))
            for op in segment.ops
        )
        shown = sorted(
            (facts["segment"], op)
            for key, facts in graph.nodes.items()
            if key.startswith(f"p{pool.first_rank}_") and "ops" in facts and facts["segment"] != "boundary"
            for op in facts["ops"].split()
        )
        assert shown == expected


def test_it_says_how_often_layers_repeat_and_where_experts_are() -> None:
    dot = summary_dot(deployment("reference"))
    for text in (
        "GQA + MoE layer x 28: layers 0-27",
        "node 0: GPUs 0-7, experts 0-3",
        "node 15: GPUs 120-127, experts 60-63",
        "1 group of 128 GPUs (axis stage)",
        "64 groups of 2 GPUs (axis tp)",
        "25 GB/s per GPU",
    ):
        assert text in dot


def test_key_figures_are_there_when_the_plan_has_them() -> None:
    plan = deployment("one-node-ep")
    assert "Key figures" not in summary_dot(plan)
    dot = summary_dot(plan.model_copy(update={"projection": some_projection()}))
    for text in ("614 ktokens/s", "time to first token 1.25 s", "41.0%", "21 GB a GPU"):
        assert text in dot
    assert "per output token" not in dot


@pytest.mark.parametrize("name", NAMES)
def test_boxes_do_not_cover_each_other(name: str) -> None:
    drawing = summary_drawing(deployment(name))
    boxes = [shape for frame in drawing.frames for shape in frame.shapes] + list(drawing.shapes)
    boxes = [shape for shape in boxes if shape.style != "text"]
    for at, first in enumerate(boxes):
        for second in boxes[at + 1 :]:
            apart = (
                second.left >= first.left + first.width
                or first.left >= second.left + second.width
                or second.top >= first.top + first.height
                or first.top >= second.top + second.height
            )
            assert apart, (first.key, second.key)
