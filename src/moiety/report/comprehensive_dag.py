"""The comprehensive DAG: every GPU's operators and tensors in a representative layer, and every communication."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.graph.graph import build_graph
from moiety.report.cache_transfer import cache_roles, transfer_lines
from moiety.report.drawing import Drawing, Line, Shape, to_dot, width_of
from moiety.report.heading import heading_shapes, page_title
from moiety.report.panel import GUTTER
from moiety.report.panel_builder import build_panel
from moiety.report.panel_layout import BOX_HEIGHT, MARGIN, place_panel

if TYPE_CHECKING:
    from moiety.plan import Plan
    from moiety.report.panel_layout import PlacedPanel

_TRANSFER_GAP = 80.0


def comprehensive_dot(plan: Plan) -> str:
    """Return the DOT text of the comprehensive DAG; same plan, same bytes."""
    return to_dot(comprehensive_drawing(plan))


def comprehensive_drawing(plan: Plan) -> Drawing:
    """Return the comprehensive DAG with its places: pools below each other, a lane for each GPU, time to the right."""
    head, top = heading_shapes(plan)
    sending, taking = cache_roles(plan)
    placed: list[PlacedPanel] = []
    gap_top = 0.0
    for number, pool in enumerate(plan.pools):
        graph = build_graph(plan.model, pool, plan.options)
        panel = build_panel(plan, pool, graph, sends_cache=number in sending, takes_cache=number in taking)
        placed.append(place_panel(panel, top))
        top = placed[-1].bottom
        if sending and number == 0:
            gap_top = top
            top += _TRANSFER_GAP
    width = max([*(panel.right for panel in placed), *(shape.left + shape.width for shape in head)]) + 2 * MARGIN
    transfer, wires = _cache_transfer(plan, placed, gap_top, width)
    return Drawing(
        name=f"{plan.name}_llm_deployment_comprehensive",
        comments=(
            f"Comprehensive deployment DAG of plan {plan.name}: {page_title(plan)}",
            "Every position is in this file: render it with `neato -n2 -Tsvg FILE.dot -o FILE.svg` (or `dot -Tsvg`).",
            "Attributes op, segment, gpu, gpus, nodes, experts and folded say what a box stands for.",
        ),
        width=width,
        height=top + MARGIN,
        frames=tuple(frame for panel in placed for frame in panel.frames),
        shapes=(*head, *(shape for panel in placed for shape in panel.shapes), *transfer),
        lines=(*(line for panel in placed for line in panel.lines), *wires),
    )


def _cache_transfer(
    plan: Plan, placed: list[PlacedPanel], gap_top: float, width: float
) -> tuple[list[Shape], list[Line]]:
    """Return the box of the KV transfer between the pools, and its wires: a trunk on the right and one on the left."""
    sending, taking = cache_roles(plan)
    if not sending:
        return [], []
    lines = transfer_lines(plan)
    size = width_of(lines)
    box = Shape("kv_transfer", lines, width / 3, gap_top + 22, size, BOX_HEIGHT, "across", (("port", "kv_transfer"),))
    middle = box.top + BOX_HEIGHT / 2
    wires: list[Line] = []
    trunk = max(placed[number].gutters[f"{GUTTER}kv_send"] for number in sending)
    for number in sending:
        for key, shape in placed[number].by_key.items():
            if key.startswith("kv_send_"):
                out, y = shape.left + shape.width, shape.top + BOX_HEIGHT / 2
                points = ((out, y), (trunk, y), (trunk, middle), (box.left + size, middle))
                wires.append(Line(key, box.key, points, "across"))
    for number in taking:
        trunk = placed[number].gutters[f"{GUTTER}kv_receive"]
        for key, shape in placed[number].by_key.items():
            if key.startswith("kv_receive_"):
                y = shape.top + BOX_HEIGHT / 2
                points = ((box.left, middle), (trunk, middle), (trunk, y), (shape.left, y))
                wires.append(Line(box.key, key, points, "across"))
    return [box], wires
