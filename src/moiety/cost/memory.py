"""Bytes on the fullest GPU of a pool, by kind."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from moiety.cost.arena import graph_lifetimes, live_peak, plan_arena
from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.graph import dense_parameters
from moiety.graph.op import Collective, Gemm
from moiety.model.attention import GroupedQueryAttention, LinearAttention
from moiety.plan import MemoryPlan

if TYPE_CHECKING:
    from moiety.cluster.device import Device
    from moiety.cost.calibration import EngineConstants
    from moiety.graph.graph import Graph
    from moiety.graph.op import Op
    from moiety.model.attention import Attention

_ADAM_BYTES = 12
"""FP32 master weight and two moments."""


def plan_memory(  # noqa: PLR0913 - the nouns that take memory
    graph: Graph,
    *,
    cached_tokens: int,
    cached_sequences: int,
    device: Device,
    engine: EngineConstants,
    packed: bool = True,
) -> MemoryPlan:
    """Return the memory plan of the stage whose GPUs are fullest.

    Not `packed`, activations count as the bytes that live at once, which no arena can undercut. `cached_tokens` and `cached_sequences` are what one attention group keeps in its KV cache at the most. Weights are the
    graph's own weight tensors, so that memory and work cannot disagree.
    """
    arena = plan_arena(graph) if packed else None
    if arena is None:
        activations = max(live_peak(each) for each in graph_lifetimes(graph))
    else:
        activations = arena.peak_bytes if graph.layout.options.arena else arena.unplanned_peak_bytes
    weights = tuple(layer_weight_bytes(ops) for ops in graph.layers)
    seen: set[tuple[object, ...]] = set()
    plans: list[MemoryPlan] = []
    for stage, layers in enumerate(graph.stages):
        # stages in between with the same kinds of layer need the same, or less further along (1F1B)
        key = (tuple(Counter(graph.block_of(each) for each in layers).items()), stage == 0, stage == len(graph.stages) - 1)
        if key not in seen:
            seen.add(key)
            plan = _stage_memory(graph, stage, cached_tokens, cached_sequences, activations, weights, device, engine)
            plans.append(plan.model_copy(update={"arena": arena}))
    return max(plans, key=lambda plan: (plan.total_bytes, -plan.stage))


def _stage_memory(  # noqa: PLR0913 - the nouns that take memory
    graph: Graph,
    stage: int,
    cached_tokens: int,
    cached_sequences: int,
    activations: int,
    weights: tuple[tuple[int, int], ...],
    device: Device,
    engine: EngineConstants,
) -> MemoryPlan:
    layout, layers = graph.layout, graph.stages[stage]
    options, strategy = layout.options, layout.strategy
    held = [weights[graph.block_of(layer)] for layer in layers]
    dense, experts = sum(each[0] for each in held), sum(each[1] for each in held)
    sharded = options.dense_parameter_sharding and strategy.attn_dp > 1
    gathered = 0
    if sharded:
        widest = max(each[0] for each in held)
        gathered, dense = 2 * widest, -(-dense // strategy.attn_dp)
    kinds = {
        "dense_weights": dense + gathered,
        "expert_weights": experts,
        "embedding_and_head": _vocabulary_bytes(graph, stage),
        "kv_cache": 0 if layout.training else cache_bytes(graph, layers, cached_tokens, cached_sequences),
        "activations": activations,
        "communication_buffers": _communication_bytes(graph),
        "engine_reserve": engine.reserve_bytes,
    }
    checkpointed: tuple[int, ...] = ()
    if layout.training:
        kinds |= _training_state(graph, layers, sharded=sharded)
        kinds["stored_activations"], checkpointed = _stored_activations(graph, stage, kinds, device)
    return MemoryPlan(
        stage=stage,
        bytes_by_kind=kinds,
        capacity_bytes=device.memory_bytes,
        checkpointed_layers=checkpointed,
    )


def layer_weight_bytes(ops: tuple[Op, ...]) -> tuple[int, int]:
    """Return (dense, routed expert) bytes of a layer's weights on one GPU; a weight that two ops share counts once."""
    dense: dict[str, int] = {}
    experts: dict[str, int] = {}
    for op in ops:
        held = experts if isinstance(op.work, Gemm) and op.work.experts else dense
        for weight in op.weights:
            held[weight.name] = weight.size_bytes
    return sum(dense.values()), sum(experts.values())


def cache_bytes_per_token(attention: Attention, tp: int, element_bytes: float) -> float:
    """Return the bytes that a token adds to one layer's cache on each GPU; a latent cache is replicated over TP."""
    if isinstance(attention, GroupedQueryAttention):
        return 2 * max(attention.num_kv_heads // tp, 1) * attention.head_dim * element_bytes
    return attention.cache_elements_per_token() * element_bytes


def cache_bytes(graph: Graph, layers: range, tokens: int, sequences: int) -> int:
    """Return the bytes of KV cache and attention state of `layers` on one GPU; a window caps a sequence's share."""
    layout = graph.layout
    element = BYTES_PER_ELEMENT[layout.options.dtypes.kv_cache]
    total = 0.0
    for layer in layers:
        attention = graph.model.blocks[graph.block_of(layer)].attention
        if isinstance(attention, LinearAttention):
            total += sequences * attention.state_elements() / layout.strategy.tp * BYTES_PER_ELEMENT["fp32"]
            continue
        window = attention.sliding_window if isinstance(attention, GroupedQueryAttention) else None
        kept = tokens if window is None else min(tokens, sequences * window)
        total += kept * cache_bytes_per_token(attention, layout.strategy.tp, element)
    return int(total)


def _vocabulary_bytes(graph: Graph, stage: int) -> int:
    model = graph.model
    table = graph.layout.share(model.vocab_size) * model.hidden_size
    table_bytes = int(table * BYTES_PER_ELEMENT[graph.layout.options.dtypes.activations])
    first, last = stage == 0, stage == len(graph.stages) - 1
    if first and last:
        return table_bytes * (1 if model.tie_word_embeddings else 2)
    return table_bytes if first or last else 0


def _communication_bytes(graph: Graph) -> int:
    """Return staging buffers: what dispatch and combine receive, once per micro-batch in flight."""
    layout = graph.layout
    in_flight = 2 if layout.options.two_batch_overlap and layout.schedule.num_microbatches > 1 else 1
    widest = 0
    for ops in graph.layers:
        exchanged = [
            op.output.size_bytes
            for op in ops
            if op.output is not None and isinstance(op.work, Collective) and op.work.kind in {"dispatch", "combine"}
        ]
        widest = max(widest, sum(exchanged))
    return in_flight * widest


def _training_state(graph: Graph, layers: range, *, sharded: bool) -> dict[str, int]:
    """Return gradients (BF16) and optimizer state (FP32), sharded with the dense parameters where those are."""
    layout, model = graph.layout, graph.model
    strategy = layout.strategy
    dense = sum(dense_parameters(model.blocks[graph.block_of(layer)], model.hidden_size) for layer in layers)
    total = sum(model.blocks[graph.block_of(layer)].num_parameters(model.hidden_size) for layer in layers)
    local_experts = (total - dense) / (strategy.ep * strategy.etp)
    vocabulary = 2 * layout.share(model.vocab_size) * model.hidden_size
    local_dense = dense / strategy.tp + vocabulary
    optimizer_dense = local_dense / (strategy.attn_dp * strategy.instances) if sharded else local_dense
    gradient_dense = local_dense / strategy.attn_dp if sharded else local_dense
    return {
        "gradients": int(2 * (gradient_dense + local_experts)),
        "optimizer_state": int(_ADAM_BYTES * (optimizer_dense + local_experts)),
    }


def _stored_activations(graph: Graph, stage: int, kinds: dict[str, int], device: Device) -> tuple[int, tuple[int, ...]]:
    """Return the bytes kept for the backward pass and the layers that recompute theirs.

    A stage keeps min(stages after it, micro-batches) of them (1F1B). With checkpointing on, as many layers as it takes
    to fit keep only their input; the first layers go first.
    """
    layout, layers = graph.layout, graph.stages[stage]
    in_flight = min(len(graph.stages) - stage, layout.schedule.num_microbatches)
    hidden = graph.embedding[0].output
    kept_input = hidden.size_bytes if hidden is not None else 0
    stored = {layer: kept_input + _output_bytes(graph.layers[graph.block_of(layer)]) for layer in layers}
    total = in_flight * sum(stored.values())
    checkpointed: list[int] = []
    if layout.options.activation_checkpointing:
        room = device.memory_bytes - sum(kinds.values())
        for layer in layers:
            if total <= room:
                break
            checkpointed.append(layer)
            total -= in_flight * (stored[layer] - kept_input)
    return total, tuple(checkpointed)


def _output_bytes(ops: tuple[Op, ...]) -> int:
    return sum(op.output.size_bytes for op in ops if op.output is not None and not op.prefetch)
