"""The head of the comprehensive page: what is drawn, and what the colours mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.report.drawing import Shape, safe_width, width_of
from moiety.report.operator_text import tier_text

if TYPE_CHECKING:
    from moiety.cluster.cluster import Cluster
    from moiety.plan import Plan

LEGEND = (
    ("gpu", "GPU: place on the mesh, experts"),
    ("product", "compute: matrix product"),
    ("expert", "compute: routed experts"),
    ("attention", "compute: attention"),
    ("memory", "compute: memory pass"),
    ("inside", "communication inside a node"),
    ("across", "communication between nodes"),
)
_TITLE_SIZE = 34
_LEGEND_SIZE = 14
_LEFT = 16.0


def page_title(plan: Plan) -> str:
    """Return model, strategies and cluster in one line."""
    pools = ", ".join(
        f"{pool.strategy.name} on {pool.num_gpus:,} GPUs" + (f" ({pool.role})" if len(plan.pools) > 1 else "")
        for pool in plan.pools
    )
    return f"{plan.model.name}, {pools}, cluster {plan.cluster.name}"


def heading_shapes(plan: Plan) -> tuple[list[Shape], float]:
    """Return the shapes of the page's head, and how far down it reaches."""
    model, cluster = plan.model, plan.cluster
    tiers = "; ".join(tier_text(cluster, tier) for tier in range(len(cluster.tiers)))
    parameters = (
        f"{billions(model.num_parameters)} parameters, {billions(model.num_active_parameters)} active for a token"
    )
    nodes = f"{node_count(cluster)} ({cluster.device.name})"
    facts = (
        f"Model: {model.num_layers} layers, hidden size {model.hidden_size:,}, {parameters}.",
        f"Cluster: {nodes}; {tiers}, one way.",
        "Each row is a GPU, time runs to the right. A layer that repeats is drawn once, with its count.",
        "A box that covers several rows is a communication of those GPUs.",
        "Shapes are those of one micro-batch on one GPU: in = read, w = weights, out = written.",
    )
    shapes = [_text("title", f"{plan.name}: {page_title(plan)}", 4, _TITLE_SIZE)]
    shapes += [_text(f"fact{at}", fact, 66 + 21 * at, _LEGEND_SIZE) for at, fact in enumerate(facts)]
    left = _LEFT
    for style, text in LEGEND:
        width = width_of([text], _LEGEND_SIZE) + 12
        shapes.append(Shape(f"legend_{style}", (text,), left, 178, width, 26, style, font_size=_LEGEND_SIZE))
        left += width + 12
    return shapes, 212.0


def node_count(cluster: Cluster) -> str:
    """Return e.g. `16 nodes of 8 GPUs`."""
    nodes = "1 node" if cluster.num_nodes == 1 else f"{cluster.num_nodes:,} nodes"
    return f"{nodes} of {cluster.gpus_per_node} GPU{'s' * (cluster.gpus_per_node > 1)}"


def billions(count: int) -> str:
    """Return a number of parameters, e.g. `22.9 B`."""
    return f"{count / 1e9:,.3g} B"


def _text(key: str, text: str, top: float, size: int) -> Shape:
    return Shape(key, (text,), _LEFT, top, safe_width(text, size), 1.4 * size, "text", font_size=size, justify="l")
