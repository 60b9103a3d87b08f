"""The comprehensive DAG shows every GPU, op and communication of the plan, and nothing else."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.graph.graph import build_graph
from moiety.graph.op import Collective
from moiety.model.catalog import load_catalog_model
from moiety.report.comprehensive_dag import comprehensive_dot, comprehensive_drawing
from moiety.report.drawing import to_dot
from moiety.report.segments import step_segments
from moiety.strategy.enumeration import enumerate_strategies
from tests.report.deployments import DEPLOYMENTS, PREFILL, deployment, make_plan
from tests.report.dot_graph import DotGraph, numbers, read_dot, topological_order

if TYPE_CHECKING:
    from moiety.graph.graph import Graph
    from moiety.plan import Plan, Pool
    from moiety.report.segments import Segment
    from moiety.strategy.strategy import Strategy

NAMES = sorted(DEPLOYMENTS)
SMALL = [name for name in NAMES if "folded" not in name and name != "reference"]


@cache
def drawn(name: str) -> tuple[Plan, DotGraph]:
    plan = deployment(name)
    return plan, read_dot(comprehensive_dot(plan))


def expected_ops(graph: Graph, stage: int) -> list[tuple[str, str]]:
    """Return (part of the step, op) of a GPU of a stage, from the graph alone."""
    kinds = sorted({graph.block_of(layer) for layer in graph.stages[stage]})
    found: list[tuple[str, str]] = []
    if stage == 0:
        found += [("embed", op.name) for op in graph.embedding]
    for kind in kinds:
        found += [(f"layer{kind}", op.name) for op in graph.layers[kind]]
        found += [(f"back{kind}", op.name) for op in graph.backward[kind]] if graph.backward else []
    if stage == len(graph.stages) - 1:
        found += [("head", op.name) for op in graph.head]
    return found + [("update", op.name) for op in graph.update]


def op_boxes(graph: DotGraph, part: str) -> dict[tuple[str, str, int], str]:
    """Return the box in which (segment, op) takes data in (`part` empty) or gives it back, for each GPU."""
    boxes: dict[tuple[str, str, int], str] = {}
    for key, facts in graph.nodes.items():
        if "op" in facts and facts.get("part", "") == part:
            for rank in numbers(facts["gpus"]):
                assert (facts["segment"], facts["op"], rank) not in boxes
                boxes[facts["segment"], facts["op"], rank] = key
    return boxes


def stage_of(pool: Pool, rank: int) -> int:
    return pool.strategy.coordinates(rank - pool.first_rank)["pp"]


def ranks_of(pool: Pool) -> range:
    return range(pool.first_rank, pool.first_rank + pool.num_gpus)


def pools_and_graphs(plan: Plan) -> list[tuple[Pool, Graph]]:
    return [(pool, build_graph(plan.model, pool, plan.options)) for pool in plan.pools]


def check_structure(plan: Plan, graph: DotGraph) -> None:
    """Check that a drawing is a DAG in which every GPU is there once and runs exactly the ops of its stage."""
    assert set(topological_order(graph)) == set(graph.nodes)
    assert {end for edge in graph.edges for end in edge} <= set(graph.nodes)
    gpus = [rank for facts in graph.nodes.values() if "gpu" in facts for rank in numbers(facts["gpu"])]
    assert sorted(gpus) == list(range(plan.num_gpus))
    folded = {rank for facts in graph.nodes.values() if "folded" in facts for rank in numbers(facts["gpu"])}
    assert not folded or plan.num_gpus > 256
    drawn_ops: Counter[tuple[str, str, int]] = Counter(dict.fromkeys(op_boxes(graph, ""), 1))
    for pool, step in pools_and_graphs(plan):
        for rank in ranks_of(pool):
            if rank not in folded:
                mine = [(segment, op) for segment, op in expected_ops(step, stage_of(pool, rank))]
                for segment, op in mine:
                    assert drawn_ops.pop((segment, op, rank)) == 1
    assert {rank for _, _, rank in drawn_ops} <= folded


@pytest.mark.parametrize("name", NAMES)
def test_every_gpu_is_there_once_with_the_ops_of_its_stage(name: str) -> None:
    check_structure(*drawn(name))


@pytest.mark.parametrize("name", NAMES)
def test_nodes_and_experts_are_those_of_the_plan(name: str) -> None:
    plan, graph = drawn(name)
    nodes = {number for frame in graph.frames for number in numbers(frame["nodes"])}
    assert nodes == {plan.cluster.node_of(rank) for rank in range(plan.num_gpus)}
    for pool in plan.pools:
        experts = {
            expert
            for frame in graph.frames
            if set(numbers(frame["gpus"])) <= set(ranks_of(pool))
            for expert in numbers(frame["experts"])
        }
        assert experts == (set(range(pool.placement.num_logical_experts)) if pool.placement else set())


@pytest.mark.parametrize("name", SMALL)
def test_every_gpu_names_its_experts_and_its_place(name: str) -> None:
    plan, graph = drawn(name)
    for pool, step in pools_and_graphs(plan):
        for rank in ranks_of(pool):
            label = graph.nodes[f"g{rank}"]["label"]
            place = pool.strategy.coordinates(rank - pool.first_rank)
            for axis, size in (("tp", pool.strategy.tp), ("ep", pool.strategy.ep), ("pp", pool.strategy.pp)):
                assert (f"{axis} {place[axis]}" in label) == (size > 1)
            rows = [] if pool.placement is None else pool.placement.layers
            row = next((at for at, layer in enumerate(rows) if layer in step.stages[place["pp"]]), None)
            if row is None:
                assert "Expert" not in label
            else:
                assert pool.placement is not None
                held = sorted(set(pool.placement.experts_of_rank(row, place["ep"])))
                assert str(held[0]) in label.split("Expert")[1]
                assert str(held[-1]) in label.split("Expert")[1]


@pytest.mark.parametrize("name", NAMES)
def test_boxes_show_the_shapes_of_the_graph(name: str) -> None:
    plan, graph = drawn(name)
    for pool, step in pools_and_graphs(plan):
        ops = {(segment.key, op.name): op for segment in step_segments(step) for op in segment.ops}
        for facts in graph.nodes.values():
            if "op" not in facts or numbers(facts["gpus"])[0] not in ranks_of(pool):
                continue
            op = ops[facts["segment"], facts["op"]]
            shown = facts.get("part") == "receive" or not op.is_communication
            if op.output is not None and shown:
                assert str(op.output) in facts["label"]
            if not op.is_communication:
                assert all(str(weight) in facts["label"] for weight in op.weights)
                read = {other.name: other.output for (key, _), other in ops.items() if key == facts["segment"]}
                for name_of_input in op.inputs:
                    tensor = read.get(name_of_input)
                    assert tensor is None or str(tensor) in facts["label"]


@pytest.mark.parametrize("name", SMALL)
def test_arrows_are_the_inputs_of_the_graph(name: str) -> None:
    plan, graph = drawn(name)
    enters, receives = op_boxes(graph, ""), op_boxes(graph, "receive")
    edges = set(graph.edges)
    for pool, step in pools_and_graphs(plan):
        for segment in step_segments(step):
            for op in segment.ops:
                for rank in ranks_of(pool):
                    if stage_of(pool, rank) not in segment.stages:
                        continue
                    head = enters[segment.key, op.name, rank]
                    for name_of_input in op.inputs:
                        where = (segment.key, name_of_input, rank)
                        if name_of_input != "input":
                            assert (receives.get(where, enters[where]), head) in edges
                    if "input" in op.inputs:
                        assert any(tail for tail, other in edges if other == head)


@pytest.mark.parametrize("name", NAMES)
def test_every_group_of_a_collective_is_in_one_box(name: str) -> None:
    plan, graph = drawn(name)
    for pool, step in pools_and_graphs(plan):
        for segment in step_segments(step):
            for op in segment.ops:
                if isinstance(op.work, Collective):
                    check_groups(plan, pool, graph, segment, op.name, op.work)


def check_groups(plan: Plan, pool: Pool, graph: DotGraph, segment: Segment, op: str, work: Collective) -> None:
    """Check that a group inside a node has one box, and any other group one network between the boxes of its nodes."""
    ranks = set(ranks_of(pool))
    boxes: dict[str, list[set[int]]] = {"": [], "network": [], "receive": []}
    for facts in graph.nodes.values():
        if facts.get("op") == op and facts["segment"] == segment.key and numbers(facts["gpus"])[0] in ranks:
            boxes[facts.get("part", "")].append(set(numbers(facts["gpus"])))
    for group in pool.strategy.groups(work.axis, pool.first_rank):
        active = {rank for rank in group if stage_of(pool, rank) in segment.stages}
        if not active:
            continue
        crosses = len({plan.cluster.node_of(rank) for rank in group}) > 1
        holding = [box for box in boxes["network" if crosses else ""] if active <= box]
        assert len(holding) == 1
        if crosses:
            assert sorted(map(sorted, boxes[""])) == sorted(map(sorted, boxes["receive"]))


def test_a_pipeline_passes_activations_on_from_stage_to_stage() -> None:
    plan, graph = drawn("pipeline")
    ports = {key: facts for key, facts in graph.nodes.items() if "port" in facts}
    wires = [(tail, head) for tail, head in graph.edges if tail in ports and head in ports]
    step = plan.pools[0].strategy.gpus_per_stage
    for tail, head in wires:
        assert (ports[tail]["port"], ports[head]["port"]) == ("send", "receive")
        assert [rank + step for rank in numbers(ports[tail]["gpus"])] == numbers(ports[head]["gpus"])
    sent = sorted(rank for tail, _ in wires for rank in numbers(ports[tail]["gpus"]))
    assert sent == list(range(plan.num_gpus - step))


def test_training_passes_gradients_back() -> None:
    _, graph = drawn("training-pipeline")
    ways = {(graph.nodes[tail].get("port"), graph.nodes[head].get("port")) for tail, head in graph.edges}
    assert {("send", "receive"), ("send_back", "receive_back")} <= ways


def test_prefill_hands_its_cache_to_decode() -> None:
    plan, graph = drawn("disaggregated")
    sending = {tail for tail, head in graph.edges if head == "kv_transfer"}
    taking = {head for tail, head in graph.edges if tail == "kv_transfer"}
    given = sorted(rank for key in sending for rank in numbers(graph.nodes[key]["gpus"]))
    taken = sorted(rank for key in taking for rank in numbers(graph.nodes[key]["gpus"]))
    assert (given, taken) == (list(ranks_of(plan.pools[0])), list(ranks_of(plan.pools[1])))
    readers = {head for tail, head in graph.edges if tail in taking}
    assert {graph.nodes[head]["op"] for head in readers} == {"attention"}
    assert {rank for head in readers for rank in numbers(graph.nodes[head]["gpus"])} == set(taken)


def test_large_clusters_are_folded_with_their_count() -> None:
    plan, graph = drawn("folded")
    assert len(graph.nodes) < 3000
    titles = [facts["label"] for key, facts in graph.nodes.items() if key.startswith("title_")]
    assert any("Nodes 4-31 as node 3: 28 nodes, 224 GPUs" in title for title in titles)
    assert any("as instance 0: 96 nodes, 768 GPUs" in title for title in titles)
    assert plan.num_gpus == 1024


@pytest.mark.parametrize("name", SMALL)
def test_no_box_covers_another(name: str) -> None:
    drawing = comprehensive_drawing(deployment(name))
    boxes = [shape for frame in drawing.frames for shape in frame.shapes if shape.style != "text"]
    boxes += [shape for shape in drawing.shapes if shape.style not in {"text", "across"}]
    boxes.sort(key=lambda shape: shape.top)
    for at, first in enumerate(boxes):
        for second in boxes[at + 1 :]:
            if second.top >= first.top + first.height:
                break
            apart = second.left >= first.left + first.width or first.left >= second.left + second.width
            assert apart, (first.key, second.key)


@pytest.mark.parametrize("name", SMALL)
def test_everything_lies_on_the_page_and_arrows_end_at_their_boxes(name: str) -> None:
    drawing = comprehensive_drawing(deployment(name))
    shapes = {shape.key: shape for frame in drawing.frames for shape in frame.shapes}
    shapes |= {shape.key: shape for shape in drawing.shapes}
    for shape in shapes.values():
        assert shape.left >= 0
        assert shape.top >= 0
        assert shape.style == "text" or shape.left + shape.width <= drawing.width
        assert shape.top + shape.height <= drawing.height
    for line in drawing.lines:
        for key, (x, y) in ((line.tail, line.points[0]), (line.head, line.points[-1])):
            shape = shapes[key]
            assert shape.left - 0.01 <= x <= shape.left + shape.width + 0.01, line
            assert shape.top - 0.01 <= y <= shape.top + shape.height + 0.01, line
        for (x0, y0), (x1, y1) in zip(line.points, line.points[1:], strict=False):
            assert x0 == x1 or y0 == y1


def test_same_plan_same_bytes() -> None:
    assert comprehensive_dot(deployment("mixed")) == comprehensive_dot(deployment("mixed"))


def legal(model_name: str, num_gpus: int) -> list[Strategy]:
    candidates = enumerate_strategies(load_catalog_model(model_name), num_gpus)
    return [candidate.strategy for candidate in candidates if candidate.is_legal]


@given(strategy=st.sampled_from(legal("mixtral-8x7b", 16)), training=st.booleans())
@settings(max_examples=25)
def test_any_legal_strategy_is_drawn_as_a_dag(strategy: Strategy, training: bool) -> None:
    role = "training" if training else "prefill"
    parts = ((strategy.name, 16, role, PREFILL),)
    plan = make_plan("mixtral-8x7b", "h100x16", parts, dense_parameter_sharding=training)
    check_structure(plan, read_dot(to_dot(comprehensive_drawing(plan))))
