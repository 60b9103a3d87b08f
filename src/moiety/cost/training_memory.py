"""Bytes that only training takes: gradients, the optimizer's state, and what is kept for the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.training import dense_parameters, optimizer_shards, routed_parameters

if TYPE_CHECKING:
    from moiety.graph.graph import Graph
    from moiety.graph.op import Op

_MOMENT_BYTES, _MASTER_BYTES = 8, 4
"""AdamW's two moments, and the FP32 master of a weight of another format, for each parameter."""


def vocabulary_elements(graph: Graph, stage: int) -> int:
    """Return the elements of embedding and output head on each GPU of a stage: the first and the last have them."""
    model = graph.model
    table = graph.layout.share(model.vocab_size) * model.hidden_size
    first, last = stage == 0, stage == len(graph.stages) - 1
    if first and last:
        return table * (1 if model.tie_word_embeddings else 2)
    return table if first or last else 0


def training_state_bytes(graph: Graph, stage: int) -> dict[str, int]:
    """Return a stage's gradients and optimizer state on each GPU, sharded where the dense parameters are.

    The state is FP32; weights that are FP32 themselves need no master beside them.
    """
    layout, model = graph.layout, graph.model
    strategy = layout.strategy
    blocks = [model.blocks[graph.block_of(layer)] for layer in graph.stages[stage]]
    routed = sum(routed_parameters(block, model.hidden_size) for block in blocks) / (strategy.ep * strategy.etp)
    dense = sum(dense_parameters(block, model.hidden_size) for block in blocks) / strategy.tp
    dense += vocabulary_elements(graph, stage)
    gradient_shards = strategy.attn_dp if layout.options.dense_parameter_sharding else 1
    activations = layout.options.dtypes.activations
    element = BYTES_PER_ELEMENT[activations]
    kept = _MOMENT_BYTES + (0 if activations == "fp32" else _MASTER_BYTES)
    return {
        "gradients": int(element * (dense / gradient_shards + routed)),
        "optimizer_state": int(kept * (dense / optimizer_shards(layout) + routed)),
    }


def stored_activations(graph: Graph, stage: int, room_bytes: int) -> tuple[int, tuple[int, ...]]:
    """Return the bytes kept for the backward pass and the layers that recompute theirs.

    A stage keeps those of as many micro-batches as there are stages from it to the last (1F1B), and of one more where
    two overlap. With checkpointing on, as many layers as it takes to fit into `room_bytes` keep only their input; the
    first layers go first.
    """
    layout, layers = graph.layout, graph.stages[stage]
    ahead = len(graph.stages) - stage + (1 if layout.options.two_batch_overlap else 0)
    in_flight = min(ahead, layout.schedule.num_microbatches)
    hidden = graph.embedding[0].output
    assert hidden is not None, "the embedding has an output"
    stored = {layer: hidden.size_bytes + _output_bytes(graph.layers[graph.block_of(layer)]) for layer in layers}
    total = in_flight * sum(stored.values())
    checkpointed: list[int] = []
    if layout.options.activation_checkpointing:
        for layer in layers:
            if total <= room_bytes:
                break
            checkpointed.append(layer)
            total -= in_flight * (stored[layer] - hidden.size_bytes)
    return total, tuple(checkpointed)


def _output_bytes(ops: tuple[Op, ...]) -> int:
    return sum(op.output.size_bytes for op in ops if op.output is not None and not op.prefetch)
