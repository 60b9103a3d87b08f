"""Bytes that only training takes: gradients, the optimizer's state, and what is kept for the backward pass."""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING

from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.saved import embedding_saved, head_saved, layer_saved, saved_bytes
from moiety.graph.sharding import dense_shards, expert_shards
from moiety.graph.training import held_dense_parameters, routed_parameters, vocabulary_parameters

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from moiety.graph.graph import Graph
    from moiety.model.model import Block

_MOMENT_BYTES, _MASTER_BYTES = 8, 4
"""AdamW's two moments, and the FP32 master of a weight of another format, for each parameter."""


def vocabulary_elements(graph: Graph, stage: int) -> int:
    """Return the elements of embedding and output head on each GPU of a stage: the first and the last have them."""
    first, last = stage == 0, stage == len(graph.stages) - 1
    return vocabulary_parameters(graph.model, graph.layout, first=first, last=last)


def training_state_bytes(graph: Graph, stage: int) -> dict[str, int]:
    """Return a stage's gradients and optimizer state on each GPU, sharded where the parameters are.

    Weights are trained in the format of the activations, but for routers that stay in FP32. The state is FP32; weights
    that are FP32 themselves need no master beside it.
    """
    layout, model = graph.layout, graph.model
    kinds = [graph.block_of(layer) for layer in graph.stages[stage]]
    experts = [held_expert_parameters(block, graph) for block in model.blocks]
    others = [block_dense_parameters(graph, kind) for kind in range(len(model.blocks))]
    routed = sum(experts[kind] for kind in kinds) / expert_shards(layout)
    dense = sum(others[kind] for kind in kinds)
    dense = (dense + vocabulary_elements(graph, stage)) / dense_shards(layout)
    mixtures = [part for part in (model.blocks[kind].moe for kind in kinds) if part is not None]
    whole = sum(part.num_experts * model.hidden_size for part in mixtures if part.router_in_fp32) / dense_shards(layout)
    rest = dense + routed - whole
    computed = layout.options.dtypes.activations
    master = 0 if computed == "fp32" else _MASTER_BYTES
    return {
        "gradients": int(BYTES_PER_ELEMENT[computed] * rest + BYTES_PER_ELEMENT["fp32"] * whole),
        "optimizer_state": int(_MOMENT_BYTES * (dense + routed) + master * rest),
    }


def block_dense_parameters(graph: Graph, kind: int) -> int:
    """Return the dense parameters of a layer of some kind on each GPU; tensor parallelism divides not all of them."""
    return held_dense_parameters(graph.layers[kind], graph.model.blocks[kind], graph.model.hidden_size)


def held_expert_parameters(block: Block, graph: Graph) -> float:
    """Return the parameters of a layer's routed experts on each GPU, copies of experts included."""
    moe, layout = block.moe, graph.layout
    if moe is None:
        return 0.0
    copies = 1 + layout.options.redundant_experts / moe.num_experts
    routed = routed_parameters(block, graph.model.hidden_size)
    return routed * copies / (layout.strategy.ep * layout.strategy.etp)


def stored_activations(graph: Graph, stage: int, room_bytes: int) -> tuple[int, tuple[int, ...]]:
    """Return the bytes kept for the backward pass and the layers that recompute theirs.

    With checkpointing on, as many layers as it takes to fit into `room_bytes` keep only their input; the first layers
    go first.
    """
    layers, kept, least = graph.stages[stage], _kept(graph), _input_bytes(graph)
    saved = [0, *accumulate(kept[graph.block_of(layer)] - least for layer in layers)]
    whole, ahead = _beside(graph, stage) + saved[-1] + least * len(layers), _ahead(graph, stage)
    sizes = [math.ceil(ahead * (whole - each)) for each in saved]
    most = len(layers) if graph.layout.options.activation_checkpointing else 0
    number = bisect_left(range(most), -room_bytes, key=lambda count: -sizes[count])
    return sizes[number], tuple(layers[:number])


def activation_bytes(
    graph: Graph, stage: int, checkpointed: Collection[int], loads: Sequence[float] | None = None
) -> int:
    """Return the bytes that a stage keeps for the backward pass; `checkpointed` layers keep only their input.

    `loads` are what the GPU's experts get of each layer's rows, relative to an equal share; None: that share.
    It keeps those of as many micro-batches as there are stages from it to the last (1F1B), and of one more where two
    overlap. Stages of v parts in turns are ahead by twice their distance from the last and by p (v - 1) further parts.
    """
    least = _input_bytes(graph)

    @cache
    def kept(kind: int, load: float) -> int:
        return saved_bytes(layer_saved(graph.model, graph.model.blocks[kind], graph.layout, load))

    total = _beside(graph, stage)
    for layer in graph.stages[stage]:
        load = 1.0 if loads is None else loads[layer]
        total += least if layer in checkpointed else kept(graph.block_of(layer), load)
    return math.ceil(_ahead(graph, stage) * total)


def _kept(graph: Graph) -> list[int]:
    """Return the bytes that a layer of each kind keeps of one micro-batch."""
    return [saved_bytes(layer_saved(graph.model, block, graph.layout)) for block in graph.model.blocks]


def _input_bytes(graph: Graph) -> int:
    hidden = graph.embedding[-1].output
    assert hidden is not None, "the embedding has an output"
    return hidden.size_bytes


def _beside(graph: Graph, stage: int) -> int:
    """Return the bytes that embedding and head keep of one micro-batch, on the stages that have them."""
    total = saved_bytes(embedding_saved(graph.layout)) if stage == 0 else 0
    return total + (saved_bytes(head_saved(graph.model, graph.layout)) if stage == len(graph.stages) - 1 else 0)


def _ahead(graph: Graph, stage: int) -> float:
    """Return of how many micro-batches a stage keeps activations at a time."""
    layout = graph.layout
    stages, parts = len(graph.stages), len(graph.pieces) // len(graph.stages)
    ahead = float(stages - stage)
    if parts > 1:
        ahead = (2 * (stages - stage - 1) + stages * (parts - 1) + 1) / parts
    ahead += 1 if layout.options.two_batch_overlap else 0
    return min(ahead, layout.schedule.num_microbatches)
