"""How much of a step measured tables cover."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from moiety.graph.op import MemoryPass
from moiety.plan import TableCoverage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moiety.cost.price import OpPrice, PricedGraph
    from moiety.graph.graph import Graph
    from moiety.graph.op import Op


@dataclass(frozen=True, slots=True)
class Coverage:
    """The figures, and the ops whose times rest on the laws: wholly, or for how they scale."""

    summary: TableCoverage
    by_law: tuple[Op, ...]


def coverage(graph: Graph, priced: Sequence[PricedGraph]) -> Coverage:
    """Return what the tables cover of a step, priced for every load of its ranks.

    An op counts as covered where it is at every load.
    """
    covered = ops = 0
    measured_s = whole_s = 0.0
    by_law: dict[Op, None] = {}
    missed: dict[str, None] = {}
    for (times, first), *others in zip(*(_prices(graph, each) for each in priced), strict=True):
        origins = {first.origin, *(other.origin for _, other in others)}
        whole_s += times * first.seconds
        if "law" not in origins:
            measured_s += times * first.seconds
        if origins != {"table"}:
            by_law[first.op] = None
        if not isinstance(first.op.work, MemoryPass):
            ops += times
            covered += 0 if "law" in origins else times
            if "law" in origins:
                missed[first.op.name] = None
    share = min(measured_s / whole_s, 1.0) if whole_s else 0.0
    summary = TableCoverage(covered_ops=covered, ops=ops, covered_seconds_share=share, by_law=tuple(missed))
    return Coverage(summary, tuple(by_law))


def _prices(graph: Graph, priced: PricedGraph) -> Iterator[tuple[int, OpPrice]]:
    """Yield how often each op runs for one micro-batch, over all layers, and its price."""
    layers = Counter(graph.model.layer_blocks)
    for block, prices in chain(enumerate(priced.layers), enumerate(priced.backward)):
        yield from ((layers[block], price) for price in prices)
    for price in (*priced.embedding, *priced.head, *priced.update):
        yield 1, price
    yield from ((len(graph.pieces) - 1, price) for price in priced.boundary)
