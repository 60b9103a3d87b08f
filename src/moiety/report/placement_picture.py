"""The picture of a placement: which experts draw tokens to which nodes from other ones, before and after."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moiety.placement.metrics import balance_of, gpu_loads
from moiety.placement.serving.expert_reach import remote_shares
from moiety.placement.serving.traffic import traffic
from moiety.report.heat_map import HeatMap, colour, heat_map
from moiety.report.svg_text import number, printable, rectangle, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from moiety.placement.problem import Loads, PlacementProblem, SlotMap

MAX_SERVED = 2_000_000
"""(layer, token, home) that are served for a picture; of a longer trace tokens at equal distances are taken."""
_WIDTH = 1120.0
_MARGIN = 24.0
_LABELS = 56.0
"""Width of the experts' numbers and loads, left of the first map."""
_GAP = 36.0
_LONGEST_TITLE = 50
_HEAD = 176.0
_STRIP_HEIGHT = 130.0
_STRIP_GAP = 100.0
_BEFORE, _AFTER = "#c08457", "#1d4f91"
_INK, _QUIET, _LINE = "#1f2933", "#52606d", "#cbd2d9"


@dataclass(frozen=True, slots=True, eq=False)
class PicturedMap:
    """A slot map, what it is called, and how its copies are chosen."""

    name: str
    slot_map: SlotMap
    cover: bool
    """Copies are chosen by our serving rule; else each takes its even share."""


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What is drawn of one map."""

    pictured: PicturedMap
    per_layer: Loads
    """Remote nodes per token, [layers]."""
    layer_balance: Loads
    """Mean over max of the GPU loads, copies sharing evenly, [layers]."""
    by_node: Loads
    """Tokens that reach each node from others per token, [layers, nodes]."""


def placement_picture(
    problem: PlacementProblem,
    before: PicturedMap,
    after: PicturedMap,
    *,
    title: str,
    layer: int | None = None,
    layer_names: Sequence[int] | None = None,
) -> str:
    """Return an SVG of the traffic between nodes under two slot maps of a problem that has a trace.

    Two heat maps, expert x node, show one layer: the row `layer` of the maps, by default the one whose remote nodes per
    token change most (the first among equals). Below, the remote nodes per token of every layer. `layer_names` numbers
    the layers as the model does. The same arguments give the same bytes.
    """
    problem = _sampled(problem)
    seen = (_seen(problem, before), _seen(problem, after))
    chosen = int(np.abs(seen[0].per_layer - seen[1].per_layer).argmax()) if layer is None else layer
    names = list(range(problem.num_layers)) if layer_names is None else list(layer_names)
    order = np.argsort(-problem.shares().mean(axis=0)[chosen], kind="stable")
    maps = [_heat_map(problem, each, chosen, order) for each in seen]
    most = max(float(np.nanmax(each.shares)) for each in maps) or 1.0
    width = (_WIDTH - 2 * _MARGIN - _LABELS - _GAP) / 2
    parts = [*_heading(problem, title, names[chosen]), *_legend(most)]
    left = _MARGIN + _LABELS
    parts += _expert_labels(problem, order, chosen, maps[0].cell_height)
    for each, drawn in zip(seen, maps, strict=True):
        parts += _panel_heading(each, chosen, left)
        parts += heat_map(drawn, left=left, top=_HEAD, width=width, most=most)
        left += width + _GAP
    top = _HEAD + maps[0].height + _STRIP_GAP
    parts += _strip(seen, chosen, names, top)
    height = top + _STRIP_HEIGHT + 50
    return _document(parts, height, f"{title}, layer {names[chosen]}")


def _sampled(problem: PlacementProblem) -> PlacementProblem:
    """Return the problem with as much of its trace as is served, at equal distances."""
    assert problem.topk is not None
    tokens = problem.topk.shape[1]
    wanted = max(MAX_SERVED // (problem.num_layers * problem.num_nodes), 1)
    if wanted >= tokens:
        return problem
    return replace(problem, topk=problem.topk[:, np.arange(wanted) * tokens // wanted])


def _seen(problem: PlacementProblem, pictured: PicturedMap) -> _Seen:
    assert problem.topk is not None
    rule = "cover" if pictured.cover else "even"
    found = traffic(problem, pictured.slot_map, rules=(rule,), max_served=problem.topk.size * problem.num_nodes)
    served = found.served[rule]
    nodes = served.nodes.copy()
    nodes[:, np.arange(problem.num_nodes), np.arange(problem.num_nodes)] = 0
    loads = gpu_loads(problem, pictured.slot_map)
    return _Seen(
        pictured=pictured,
        per_layer=served.remote_nodes,
        layer_balance=balance_of(loads, problem.speed()).mean(axis=0),
        by_node=nodes.sum(axis=1),
    )


def _heat_map(problem: PlacementProblem, seen: _Seen, layer: int, order: NDArray[np.intp]) -> HeatMap:
    slots = seen.pictured.slot_map[layer]
    shares = remote_shares(problem, slots, layer, cover=seen.pictured.cover)
    held = np.zeros(shares.shape, dtype=np.bool_)
    held[slots, np.arange(slots.size) // problem.slots_per_node] = True
    return HeatMap(shares=np.where(held, shares, np.nan)[order], column_totals=seen.by_node[layer])


def _heading(problem: PlacementProblem, title: str, layer: int) -> Iterator[str]:
    assert problem.topk is not None
    copies = problem.num_slots - problem.num_experts
    extra = f" (+{copies / problem.num_experts:.1%})" if copies else ""
    facts = f"{problem.num_experts} experts on {problem.num_slots} slots{extra}, {problem.num_gpus} GPUs in "
    facts += f"{problem.num_nodes} nodes; {problem.topk.shape[2]} experts a token; layer {layer}, "
    facts += f"one of {problem.num_layers}; {problem.topk.shape[1]:,} tokens, homes uniform over the nodes"
    shown = title if len(title) <= _LONGEST_TITLE else f"{title[: _LONGEST_TITLE - 1]}\N{HORIZONTAL ELLIPSIS}"
    yield text(_MARGIN, 36, f"Tokens that reach an expert on another node: {shown}", size=19, bold=True)
    yield text(_MARGIN, 58, facts, size=12, fill=_QUIET)


def _legend(most: float) -> Iterator[str]:
    left, top, width, steps = _MARGIN, 70.0, 240.0, 24
    for step in range(steps):
        x = left + width * step / steps
        yield rectangle(x, top, width / steps + 0.3, 12, colour(step / (steps - 1)))
    digits = 1 if most >= 0.02 else 2  # noqa: PLR2004 - below 2 % one digit says too little
    for at, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        yield text(left + at * width, top + 25, f"{at * most:.{digits}%}", size=11, anchor=anchor, fill=_QUIET)
    said = "share of the layer's tokens that come to the expert there from another node; blank: no copy on the node"
    yield text(left + width + 14, top + 11, said, size=12, fill=_QUIET)


def _expert_labels(problem: PlacementProblem, order: NDArray[np.intp], layer: int, cell: float) -> Iterator[str]:
    """Yield the experts' numbers, as many as can be read, and a bar for each one's load."""
    loads = problem.shares().mean(axis=0)[layer]
    step = max(1, int(np.ceil(11 / cell)))
    yield text(_MARGIN, _HEAD - 20, "experts", size=11, fill=_QUIET)
    yield text(_MARGIN, _HEAD - 8, "by load", size=11, fill=_QUIET)
    for row, expert in enumerate(order.tolist()):
        y = _HEAD + row * cell
        length = 24 * float(loads[expert] / loads.max())
        yield rectangle(_MARGIN + _LABELS - 4 - length, y + cell * 0.1, length, cell * 0.8, "#b8c4ce")
        if row % step == 0:
            middle = y + cell * min(step, problem.num_experts - row) / 2 if step == 1 else y + 8
            yield text(_MARGIN + 22, middle + (3.5 if step == 1 else 0), str(expert), size=10, anchor="end")


def _panel_heading(seen: _Seen, layer: int, left: float) -> Iterator[str]:
    chosen = "copies at home first, then few nodes" if seen.pictured.cover else "copies taken evenly"
    nodes, even = seen.per_layer, seen.layer_balance
    yield text(left, _HEAD - 50, f"{seen.pictured.name}, {chosen}", size=14, bold=True)
    said = f"{nodes[layer]:.3f} remote nodes a token, balance {even[layer]:.3f} "
    said += f"(all layers: {nodes.mean():.3f}, {even.mean():.3f})"
    yield text(left, _HEAD - 32, said, size=12)


def _strip(seen: Sequence[_Seen], chosen: int, names: Sequence[int], top: float) -> Iterator[str]:
    """Yield the remote nodes per token of every layer, two bars a layer."""
    left, width = _MARGIN + _LABELS, _WIDTH - 2 * _MARGIN - _LABELS
    highest = max(float(each.per_layer.max()) for each in seen) or 1.0
    tick = _tick(highest)
    limit = tick * np.ceil(highest / tick - 1e-9)
    bottom = top + _STRIP_HEIGHT
    yield text(left, top - 48, "Remote nodes a token, layer by layer", size=14, bold=True)
    x = left
    for each, fill in zip(seen, (_BEFORE, _AFTER), strict=True):
        yield rectangle(x, top - 34, 12, 12, fill)
        label = f"{each.pictured.name} (mean {each.per_layer.mean():.3f})"
        yield text(x + 17, top - 24, label, size=12)
        x += 40 + 7.2 * len(label)
    for mark in np.arange(0, limit + tick / 2, tick).tolist():
        y = bottom - mark / limit * _STRIP_HEIGHT
        yield rectangle(left, y, width, 0.6, _LINE)
        yield text(left - 6, y + 3.5, f"{mark:.3g}", size=10, anchor="end", fill=_QUIET)
    place = min(width / len(names), 60.0)
    bar = min(place * 0.38, 14.0)
    step = max(1, int(np.ceil(22 / place)))
    shown = {chosen, *(at for at in range(0, len(names), step) if abs(at - chosen) >= step)}
    for at, name in enumerate(names):
        middle = left + (at + 0.5) * place
        for each, fill, x in zip(seen, (_BEFORE, _AFTER), (middle - bar, middle), strict=True):
            tall = float(each.per_layer[at]) / limit * _STRIP_HEIGHT
            yield rectangle(x, bottom - tall, bar, tall, fill)
        if at in shown:
            yield text(middle, bottom + 15, str(name), size=10, anchor="middle", bold=at == chosen)
    yield text(left, bottom + 34, "layer (bold: the one above)", size=11, fill=_QUIET)


def _tick(highest: float) -> float:
    """Return the distance of about four marks up to `highest`: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(highest / 4))
    return float(next(power * each for each in (1, 2, 5, 10) if power * each * 4 >= highest))


def _document(parts: Sequence[str], height: float, title: str) -> str:
    size = f'width="{number(_WIDTH)}" height="{number(height)}" viewBox="0 0 {number(_WIDTH)} {number(height)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica,Arial,sans-serif" fill="{_INK}">'
    body = [f"<title>{printable(title)}</title>", rectangle(0, 0, _WIDTH, height, "#ffffff"), *parts]
    return "\n".join([head, *body, "</svg>"]) + "\n"
