"""The picture of a placement: its totals are those of the traffic, and its labels are legible."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.placement.methods.table import METHODS
from moiety.placement.problem import PlacementProblem, placement_problem
from moiety.placement.serving.traffic import traffic
from moiety.report.heat_map import LEVELS, HeatMap, colour, heat_map
from moiety.report.placement_picture import PicturedMap, placement_picture
from moiety.workload.routing import Routing

SVG = "{http://www.w3.org/2000/svg}"
BEFORE, AFTER = "eplb-global", "balance"


def problem(*, layers: int = 3, experts: int = 16, gpus: int = 8, nodes: int = 4, slots: int = 24) -> PlacementProblem:
    rng = np.random.default_rng(experts * nodes)
    keys = rng.random((layers, 200, experts)) * (1 + np.arange(experts) % 5)
    topk = np.argsort(keys, axis=2)[:, :, :4]
    counts = np.stack([np.bincount(each.ravel(), minlength=experts) for each in topk])[None].astype(np.float64)
    return placement_problem(Routing(counts, topk), num_gpus=gpus, num_nodes=nodes, num_slots=slots)


def picture(given_problem: PlacementProblem, **options: object) -> str:
    before, after = (PicturedMap(name, METHODS[name](given_problem), cover=name == AFTER) for name in (BEFORE, AFTER))
    return placement_picture(given_problem, before, after, title="dump.npz", **options)  # pyright: ignore[reportArgumentType]


def texts(svg: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter(f"{SVG}text"))  # noqa: S314 - our own text


def words(svg: str) -> list[str]:
    return [each.text or "" for each in texts(svg)]


def test_totals_are_those_of_the_traffic() -> None:
    own = problem()
    said = words(picture(own, layer=1))
    for name, rule in ((BEFORE, "even"), (AFTER, "cover")):
        nodes = traffic(own, METHODS[name](own)).served[rule].remote_nodes  # pyright: ignore[reportArgumentType]
        assert any(
            each.startswith(f"{nodes[1]:.3f} remote nodes a token") and f"(all layers: {nodes.mean():.3f}" in each
            for each in said
        )
        assert f"{name} (mean {nodes.mean():.3f})" in said
        totals = [float(each) for each in said if re.fullmatch(r"\d\.\d{3}", each)]
        part = totals[:4] if name == BEFORE else totals[4:8]
        assert sum(part) == pytest.approx(nodes[1], abs=3e-3)


def test_without_a_layer_the_one_that_changes_most_is_shown() -> None:
    own = problem(layers=5)
    change = [
        traffic(own, METHODS[name](own)).served[rule].remote_nodes  # pyright: ignore[reportArgumentType]
        for name, rule in ((BEFORE, "even"), (AFTER, "cover"))
    ]
    most = int(np.abs(change[0] - change[1]).argmax())
    names = [10, 20, 30, 40, 50]
    assert any(f"layer {names[most]}, one of 5" in each for each in words(picture(own, layer_names=names)))


def test_experts_stand_in_the_order_of_their_load() -> None:
    own = problem(experts=12, gpus=4, nodes=2, slots=12)
    order = np.argsort(-own.shares()[0, 0], kind="stable")
    labels = [int(each.text or "") for each in texts(picture(own, layer=0)) if each.get("x") == "46"]
    assert labels == order.tolist()


@pytest.mark.parametrize(
    ("experts", "gpus", "nodes", "slots", "layers"), [(16, 8, 4, 24, 3), (256, 64, 32, 320, 61), (60, 4, 2, 60, 1)]
)
def test_no_labels_overlap_and_all_is_on_the_page(experts: int, gpus: int, nodes: int, slots: int, layers: int) -> None:
    svg = picture(problem(experts=experts, gpus=gpus, nodes=nodes, slots=slots, layers=layers))
    root = ET.fromstring(svg)  # noqa: S314 - our own text
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    boxes: list[tuple[float, float, float, float]] = []
    for each in root.iter(f"{SVG}text"):
        size = float(each.get("font-size", ""))
        wide = 0.58 * size * len(each.text or "")
        x, y = float(each.get("x", "")), float(each.get("y", ""))
        left = x - {"middle": wide / 2, "end": wide}.get(each.get("text-anchor", ""), 0.0)
        boxes.append((left, y - 0.75 * size, left + wide, y))
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height
        for other in boxes[:index]:
            assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1], (boxes[index], other)


def test_the_same_picture_has_the_same_bytes_and_names_are_escaped() -> None:
    own = problem()
    slots = METHODS[AFTER](own)
    drawn = [
        placement_picture(
            own, PicturedMap("a<b&c", slots, cover=False), PicturedMap("\x07", slots, cover=True), title="<&>\x00"
        )
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    said = words(drawn[0])
    assert "a<b&c, copies taken evenly" in said
    assert "Tokens that reach an expert on another node: <&>?" in said


def test_a_layer_without_traffic_is_drawn() -> None:
    own = problem(experts=4, gpus=2, nodes=2, slots=8)
    everywhere = np.tile(np.arange(4), (3, 2))
    svg = placement_picture(
        own, PicturedMap("a", everywhere, cover=True), PicturedMap("b", everywhere, cover=True), title="t"
    )
    assert any(each.startswith("0.000 remote nodes a token") for each in words(svg))


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 40), st.data())
def test_every_cell_with_a_share_is_painted_once(rows: int, columns: int, data: st.DataObject) -> None:
    cell = st.one_of(st.just(np.nan), st.floats(0, 1))
    shares = np.array(data.draw(st.lists(cell, min_size=rows * columns, max_size=rows * columns))).reshape(rows, -1)
    drawn = "".join(heat_map(HeatMap(shares, np.zeros(columns)), left=0, top=0, width=400, most=1.0))
    assert drawn.count("M") == int((~np.isnan(shares)).sum())
    assert drawn.count("<path") <= LEVELS


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_is_darker(one: float, other: float) -> None:
    low, high = sorted((one, other))
    light, dark = ([int(colour(each)[at : at + 2], 16) for at in (1, 3, 5)] for each in (low, high))
    assert sum(dark) <= sum(light) + 1
