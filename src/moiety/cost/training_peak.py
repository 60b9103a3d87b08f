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
from moiety.graph.saved import experts_saved, head_saved, layer_saved, saved_bytes
from moiety.graph.sharding import dense_shards, expert_shards, splits_slots

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moiety.graph.graph import Graph
    from moiety.graph.layout import Layout
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
    Sharded, embedding and head are gathered from forward to the end of backward, beside the GPU's own part of them.
    """
    kinds = memory.bytes_by_kind
    ends, shards = kinds["embedding_and_head"], dense_shards(graph.layout)
    after = _weight_shards(graph) + -(-ends // shards) + kinds["optimizer_state"]
    held = after + (ends if shards > 1 else 0)
    head = {each.name: int(each.size_bytes) for each in head_saved(graph.model, graph.layout)}
    loads = [1.0] * graph.model.num_layers if loads is None else loads
    kept = activation_bytes(graph, 0, memory.checkpointed_layers, loads)
    return {
        # gradients of the loss and of its logits, and the last layer's weights under way
        "backward_begins": held + kept + 2 * head["log_probabilities"] + sum(_gathered(graph)[-1]),
        "backward": max(held + _most_in_backward(graph, memory, loads, kept), after + _last_scatter(graph, memory)),
        "reduction": after + kinds["gradients"] + 2 * _bucket_bytes(graph),
        "update": after + kinds["gradients"] + _update_bytes(graph, memory),
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


def _gathered(graph: Graph) -> list[tuple[int, int]]:
    """Return the (dense, expert) bytes that each layer's sharded weights take while they are gathered."""
    dense, experts = dense_shards(graph.layout) > 1, expert_shards(graph.layout) > 1
    return [(one if dense else 0, other if experts else 0) for one, other in _layer_weights(graph)]


def _most_in_backward(graph: Graph, memory: MemoryPlan, loads: Sequence[float], kept: int) -> int:
    """Return the most of kept tensors, gradients and a layer's own work while the layers go backward.

    A layer's gradients of activations have the sizes of the activations themselves, but for those of the experts'
    outputs, which are FP32. Where weights are sharded, those of the layer at work and of the next are gathered, and
    what is scattered of the layer before, in FP32, stays until this one's gradients are there, whole.
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
        left = kept - (hidden.size_bytes if again else whole)
        dense, experts = block_dense_parameters(graph, graph.block_of(layer)), held_expert_parameters(block, graph)
        work = max(memory.bytes_by_kind["activations"], _experts_work(block, graph, loads[layer]))
        ahead = sum(gathered[layer - 1]) if layer else 0
        at_work = gradients + sum(gathered[layer]) + ahead + scattering
        scattered = _FP32 * ((dense if shards > 1 else 0) + (experts if parts > 1 else 0))
        most = max(
            most,
            kept + gradients + scattering + _copied_out(gathered[layer], block, layout),
            kept + again + work + at_work,
            kept + again - _experts_kept(block, graph, loads[layer]) + element * experts + at_work,
            left + element * (dense + experts) + at_work,
            left + element * (dense + experts) + gradients + scattered + ahead,
        )
        kept, scattering = left, scattered
        gradients += element * (dense / shards + experts / parts)
    return int(most)


def _copied_out(gathered: tuple[int, int], block: Block, layout: Layout) -> int:
    """Return the bytes of a layer's gathered weights as they are copied from what was sent for them.

    Experts over other ranks than the rest are sent for themselves, after it. A part that is not some of the slots is
    copied twice: it is to lie in order.
    """
    dense, experts = gathered
    turned = 0 if block.moe is None or splits_slots(block.moe, layout) else experts
    if layout.strategy.attn_dp == 1:
        return 2 * (dense + experts) + turned
    return dense + experts + max(dense, experts + turned)


def _last_scatter(graph: Graph, memory: MemoryPlan) -> int:
    """Return the bytes of gradients as those of sharded embedding and head are scattered, whole and in FP32."""
    shards = dense_shards(graph.layout)
    if shards == 1:
        return 0
    kinds = memory.bytes_by_kind
    ends = kinds["embedding_and_head"]
    return kinds["gradients"] + ends - ends // shards + int(_FP32 * vocabulary_elements(graph, 0))


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


def _experts_kept(block: Block, graph: Graph, load: float) -> int:
    """Return the bytes kept for the routed experts, gone when they have gone backward, less their inputs' gradient."""
    if block.moe is None:
        return 0
    element = BYTES_PER_ELEMENT[graph.layout.options.dtypes.activations]
    inputs = element * load * expert_rows(block.moe, graph.layout) * block.moe.row_size(graph.model.hidden_size)
    return saved_bytes(experts_saved(block.moe, graph.model, graph.layout, load)) - int(inputs)


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
