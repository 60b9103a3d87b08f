"""A DOT text as the laws look at it: boxes with their attributes, and the arrows between them."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

_NODE = re.compile(r'^("(?:[^"\\]|\\.)*"|\w+) \[(label=.*)\];$')
_EDGE = re.compile(r'^("(?:[^"\\]|\\.)*"|\w+) -> ("(?:[^"\\]|\\.)*"|\w+) \[pos=')
_ATTRIBUTE = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[\w.]+)')
_FRAME = re.compile(r"^subgraph ")


@dataclass(frozen=True, slots=True)
class DotGraph:
    """What a DOT text says."""

    nodes: dict[str, dict[str, str]]
    edges: list[tuple[str, str]]
    frames: list[dict[str, str]]


def read_dot(dot: str) -> DotGraph:
    """Return the boxes, arrows and frames of a drawing that Moiety wrote: a statement a line."""
    nodes: dict[str, dict[str, str]] = {}
    edges: list[tuple[str, str]] = []
    frames: list[dict[str, str]] = []
    in_frame = False
    for line in dot.splitlines():
        if in_frame:
            frames.append(_attributes(line))
        in_frame = bool(_FRAME.match(line))
        if edge := _EDGE.match(line):
            edges.append((edge[1].strip('"'), edge[2].strip('"')))
        elif node := _NODE.match(line):
            key = node[1].strip('"')
            assert key not in nodes, key
            nodes[key] = _attributes(node[2])
    return DotGraph(nodes, edges, frames)


def topological_order(graph: DotGraph) -> list[str]:
    """Return the boxes in an order that respects the arrows; boxes on a circle are missing."""
    waiting = dict.fromkeys(graph.nodes, 0)
    after: dict[str, list[str]] = defaultdict(list)
    for tail, head in graph.edges:
        after[tail].append(head)
        waiting[head] += 1
    ready = [key for key, count in waiting.items() if count == 0]
    order: list[str] = []
    while ready:
        key = ready.pop()
        order.append(key)
        for head in after[key]:
            waiting[head] -= 1
            if waiting[head] == 0:
                ready.append(head)
    return order


def numbers(text: str) -> list[int]:
    """Return the numbers of ranges such as `0-7, 12`."""
    found: list[int] = []
    for part in filter(None, text.split(", ")):
        low, _, high = part.partition("-")
        found += range(int(low), int(high or low) + 1)
    return found


def _attributes(text: str) -> dict[str, str]:
    return {name: value.strip('"') for name, value in _ATTRIBUTE.findall(text)}
