"""Segments: the parts of a step in the order of their execution, from embedding to update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.graph.op import Collective
from moiety.report.lanes import number_ranges
from moiety.report.operator_text import block_title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.graph.graph import Graph
    from moiety.graph.op import Op


@dataclass(frozen=True, slots=True)
class Segment:
    """Ops that run one after the other wherever the segment runs; a kind of layer is there once, with its layers."""

    key: str
    title: str
    ops: tuple[Op, ...]
    layers: tuple[int, ...] = ()
    """Layers of the model that look like this; empty: no layer."""
    stages: tuple[int, ...] = ()
    """Pipeline stages that run it."""
    is_backward: bool = False

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the ops whose output goes on to the next segment: those that only background transfers read."""
        read = {name for op in self.ops if not _is_bulk(op) for name in op.inputs}
        return tuple(op.name for op in self.ops if op.name not in read and not _is_bulk(op)) or (self.ops[-1].name,)

    @property
    def loose_ends(self) -> tuple[str, ...]:
        """Names of the background transfers that nothing in the segment waits for (reductions of gradients)."""
        read = {name for op in self.ops for name in op.inputs}
        return tuple(op.name for op in self.ops if op.name not in read and _is_bulk(op))

    def count_text(self, layers: tuple[int, ...]) -> str:
        """Return the title with how many of `layers` it stands for, e.g. `MoE layer x 28: layers 0-27`."""
        if not self.layers:
            return self.title
        return f"{self.title} x {len(layers)}: {layer_text(layers)}"


def layer_text(layers: Sequence[int]) -> str:
    """Return e.g. `layer 3` or `layers 0-27`."""
    return f"{'layer' if len(layers) == 1 else 'layers'} {number_ranges(layers)}"


def step_segments(graph: Graph) -> tuple[Segment, ...]:
    """Return the segments of a step that have ops, in the order of their execution."""
    everywhere = tuple(range(len(graph.stages)))
    last = everywhere[-1:]
    segments = [Segment("embed", "embedding", graph.embedding, stages=(0,))]
    blocks = list(dict.fromkeys(graph.model.layer_blocks))
    segments += [_layer_segment(graph, block, is_backward=False) for block in blocks]
    segments.append(Segment("head", "output head", graph.head, stages=last))
    if graph.backward:
        segments += [_layer_segment(graph, block, is_backward=True) for block in reversed(blocks)]
    segments.append(Segment("update", "optimizer, once a step", graph.update, stages=everywhere))
    return tuple(segment for segment in segments if segment.ops)


def layers_of(segment: Segment, graph: Graph, stages: tuple[int, ...]) -> tuple[int, ...]:
    """Return the layers of a segment that some stages hold."""
    held = {layer for stage in stages for layer in graph.stages[stage]}
    return tuple(layer for layer in segment.layers if layer in held)


def _layer_segment(graph: Graph, block: int, *, is_backward: bool) -> Segment:
    layers = tuple(layer for layer, kind in enumerate(graph.model.layer_blocks) if kind == block)
    title = block_title(graph.model.blocks[block])
    return Segment(
        key=f"back{block}" if is_backward else f"layer{block}",
        title=f"{title}, backward" if is_backward else title,
        ops=graph.backward[block] if is_backward else graph.layers[block],
        layers=layers,
        stages=tuple(stage for stage, held in enumerate(graph.stages) if any(layer in held for layer in layers)),
        is_backward=is_backward,
    )


def _is_bulk(op: Op) -> bool:
    return isinstance(op.work, Collective) and op.work.bulk
