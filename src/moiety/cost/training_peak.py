"""The most bytes at a time in a step of training, moment by moment.

The kinds of a memory plan are each counted at their most, and never are all there at once: in a step, gradients grow as
the backward pass lets go of what it was kept for, and the optimizer works when that is all gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cost.memory import layer_weight_bytes
from moiety.cost.training_memory import (
    activation_bytes,
    block_dense_parameters,
    held_expert_parameters,
    vocabulary_elements,
)
from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.feed_forward import expert_rows
from moiety.graph.saved import head_saved, layer_saved, saved_bytes
from moiety.graph.sharding import dense_shards, expert_shards

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moiety.graph.graph import Graph
    from moiety.model.model import Block
    from moiety.plan import MemoryPlan

_FP32 = 4
_BUCKET_BYTES = 32 << 20
"""Of gradients that the run time sums in one reduction (`runtime/training/gradients.py`)."""


def step_peaks(graph: Graph, memory: MemoryPlan, loads: Sequence[float] | None = None) -> dict[str, int]:
    """Return the bytes at the moments of a step that can be its peak, on a GPU of a plan's only stage.

    `loads` are what the GPU's experts get of each layer's rows, relative to an equal share; None: that share. The step
    is one micro-batch. `backward_begins`: all that the forward pass keeps is there, and the loss's gradient;
    `backward`: at the layer where kept tensors, gradients and the layer's own work are most; `update`: gradients and
    what the optimizer makes of them; `reduction`: gradients that other ranks hold too, copied together and summed.
    """
    kinds = memory.bytes_by_kind
    held = _weight_shards(graph) + kinds["embedding_and_head"] + kinds["optimizer_state"]
    head = {each.name: int(each.size_bytes) for each in head_saved(graph.model, graph.layout)}
    loads = [1.0] * graph.model.num_layers if loads is None else loads
    kept = activation_bytes(graph, 0, memory.checkpointed_layers, loads)
    return {
        "backward_begins": held + kept + 2 * head["log_probabilities"],  # gradients of the loss and of its logits
        "backward": held + _most_in_backward(graph, memory, loads, kept),
        "reduction": held + kinds["gradients"] + 2 * _bucket_bytes(graph),
        "update": held + kinds["gradients"] + _update_bytes(graph, memory),
    }


def fullest_peaks(graph: Graph, memory: MemoryPlan, every_load: Iterable[Sequence[float]]) -> dict[str, int]:
    """Return `step_peaks` of the GPU whose peak is highest, of GPUs with these loads."""
    found = (step_peaks(graph, memory, loads) for loads in every_load)
    return max(found, key=lambda peaks: max(peaks.values()))


def _weight_shards(graph: Graph) -> int:
    """Return the bytes of the layers' weights on a GPU while nothing is gathered."""
    dense, experts = (sum(each) for each in zip(*_layer_weights(graph), strict=True))
    return -(-dense // dense_shards(graph.layout)) + -(-experts // expert_shards(graph.layout))


def _layer_weights(graph: Graph) -> list[tuple[int, int]]:
    """Return (dense, expert) bytes of each layer's weights on a GPU that holds them whole."""
    weights = [layer_weight_bytes(ops) for ops in graph.layers]
    return [weights[graph.block_of(layer)] for layer in graph.stages[0]]


def _gathered(graph: Graph) -> list[int]:
    """Return the bytes that each layer's sharded weights take while they are gathered."""
    layout = graph.layout
    shards = dense_shards(layout), expert_shards(layout)
    return [
        sum(each for each, count in zip(weights, shards, strict=True) if count > 1) for weights in _layer_weights(graph)
    ]


def _most_in_backward(graph: Graph, memory: MemoryPlan, loads: Sequence[float], kept: int) -> int:
    """Return the most of kept tensors, gradients and a layer's own work while the layers go backward.

    A layer's gradients of activations have the sizes of the activations themselves, but for those of the experts'
    outputs, which are FP32. The weights of the layer at work and of the next are gathered where they are sharded.
    Sharded gradients are there whole, and once more in FP32 as they are scattered: those of the experts when the
    layer's work is done, and while the next layer works.
    """
    model, layout, hidden = graph.model, graph.layout, graph.embedding[-1].output
    assert hidden is not None, "the embedding has an output"
    element = BYTES_PER_ELEMENT[layout.options.dtypes.activations]
    shards, parts, gathered = dense_shards(layout), expert_shards(layout), _gathered(graph)
    gradients = element * vocabulary_elements(graph, 0) / (1 if model.tie_word_embeddings else 2)
    kept -= saved_bytes(head_saved(model, layout))
    most = scattering = 0.0
    for layer in reversed(graph.stages[0]):
        block = model.blocks[graph.block_of(layer)]
        whole = saved_bytes(layer_saved(model, block, layout, loads[layer]))
        again = whole if layer in memory.checkpointed_layers else 0
        dense, experts = block_dense_parameters(graph, graph.block_of(layer)), held_expert_parameters(block, graph)
        scattered = dense * (element + _FP32) if shards > 1 else 0.0
        work = max(memory.bytes_by_kind["activations"], _experts_work(block, graph, loads[layer]))
        ahead = gathered[layer - 1] if layer else 0
        there = kept + gradients + scattered + ahead
        most = max(most, there + again + work + gathered[layer] + scattering)
        kept -= hidden.size_bytes if again else whole
        if parts > 1:
            scattering = _FP32 * experts
            most = max(most, there - (0 if again else whole) + element * experts + scattering)
        gradients += element * (dense / shards + experts / parts)
    return int(most)


def _bucket_bytes(graph: Graph) -> int:
    """Return the most gradients that are summed over ranks at a time: dense ones, or those of instances' experts."""
    layout, model = graph.layout, graph.model
    strategy = layout.strategy
    shards = dense_shards(layout)
    dense = sum(
        block_dense_parameters(graph, graph.block_of(layer)) for layer in graph.stages[0]
    ) + vocabulary_elements(graph, 0)
    shared = [dense / shards] if strategy.attn_dp * strategy.instances > shards else [0.0]
    if strategy.instances > expert_shards(layout):
        shared.append(sum(held_expert_parameters(block, graph) for block in model.layers))
    return int(min(_BUCKET_BYTES, BYTES_PER_ELEMENT[layout.options.dtypes.activations] * max(shared)))


def _experts_work(block: Block, graph: Graph, load: float) -> float:
    """Return the FP32 bytes where the experts' outputs go backward.

    Of a token the gradient of the layer's output, of a row that came those of its sum, and for each of its experts
    those of the weighted output, of the output, and of the weight before it is added up.
    """
    moe, layout, hidden = block.moe, graph.layout, graph.model.hidden_size
    if moe is None:
        return 0.0
    came = min(load * min(moe.top_k, layout.strategy.ep) / layout.strategy.ep, 1.0) * layout.stage_tokens
    rows = 3 * load * expert_rows(moe, layout) + came
    return _FP32 * (moe.row_size(hidden) * rows + hidden * layout.tokens)


def _update_bytes(graph: Graph, memory: MemoryPlan) -> int:
    """Return what the update takes: gradients in FP32 for masters, and AdamW's root and quotient of a parameter.

    The quotient of the parameter before is let go of when the next is there.
    """
    model, layout = graph.model, graph.layout
    strategy = layout.strategy
    element = BYTES_PER_ELEMENT[layout.options.dtypes.activations]
    masters = memory.bytes_by_kind["gradients"] * _FP32 / element if element != _FP32 else 0.0
    largest = layout.share(model.vocab_size) * model.hidden_size / dense_shards(layout)
    before = 0.0
    for moe in (block.moe for block in model.blocks):
        if moe is not None:
            slots = (moe.num_experts + layout.options.redundant_experts) // strategy.ep
            width = moe.expert_intermediate_size // strategy.etp / expert_shards(layout)
            down = slots * width * moe.row_size(model.hidden_size)
            if 2 * down > largest:
                largest, before = 2 * down, down
    return int(masters + _FP32 * (2 * largest + before))
