"""Bytes on the fullest GPU of a pool, by kind."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from moiety.calibration.scheduling import scheduling
from moiety.cost.arena import graph_lifetimes, live_peak, plan_arena
from moiety.cost.training_memory import stored_activations, training_state_bytes, vocabulary_elements
from moiety.cost.workspaces import Workspaces
from moiety.dtypes import BYTES_PER_ELEMENT, CACHE_BYTES_PER_ELEMENT, ROW_BYTES_PER_ELEMENT
from moiety.graph.op import Collective, Gemm
from moiety.graph.sharding import dense_shards, expert_shards
from moiety.model.attention import GroupedQueryAttention, LinearAttention, MultiHeadLatentAttention
from moiety.plan import MemoryPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.calibration.calibration import Engine, EngineConstants
    from moiety.cluster.device import Device
    from moiety.graph.graph import Graph
    from moiety.graph.layout import Layout
    from moiety.graph.op import Op
    from moiety.model.attention import Attention
    from moiety.plan import Arena, DtypePolicy


def plan_memory(
    graph: Graph,
    *,
    cached_tokens: int,
    cached_sequences: int,
    device: Device,
    engine: EngineConstants,
    engine_name: Engine | None = None,
    packed: bool = True,
) -> MemoryPlan:
    """Return the memory plan of the stage whose GPUs are fullest.

    `cached_tokens` and `cached_sequences` are what one attention group keeps in its KV cache at the most. Weights are
    the graph's own weight tensors, so that memory and work cannot disagree. What it is by name says what of it is
    cached, and whether it is our run time, whose ops take workspaces. Not `packed`, activations count as the bytes that
    live at once, which no arena can undercut.
    """
    # training holds weights as products take them, and its work is counted with what autograd keeps
    workspaces = Workspaces.on(device, graph) if engine_name == "moiety" and not graph.layout.training else None
    arena = plan_arena(graph, workspaces) if packed else None
    if arena is None:
        activations = max(live_peak(each) for each in graph_lifetimes(graph, workspaces))
    else:
        activations = arena.peak_bytes if graph.layout.options.arena else arena.unplanned_peak_bytes
    keeps_all = engine_name is not None and scheduling(engine_name).keeps_all_tokens
    weights = tuple(layer_weight_bytes(ops) for ops in graph.layers)
    seen: set[tuple[object, ...]] = set()
    plans: list[MemoryPlan] = []
    for stage, layers in enumerate(graph.stages):
        # stages in between with the same kinds of layer need the same, or less further along (1F1B)
        key = (
            tuple(Counter(graph.block_of(each) for each in layers).items()),
            stage == 0,
            stage == len(graph.stages) - 1,
        )
        if key not in seen:
            seen.add(key)
            cache = 0
            if not graph.layout.training:
                cache = cache_bytes(graph, layers, cached_tokens, cached_sequences, keeps_all=keeps_all)
            held = _weight_bytes(graph, stage, weights)
            kinds = {
                **held,
                "kv_cache": cache,
                "activations": activations,
                "communication_buffers": _communication_bytes(graph),
                "engine_reserve": round(engine.kept_bytes(device.memory_bytes, sum(held.values()))),
            }
            plans.append(_stage_plan(graph, stage, kinds, device, arena))
    return max(plans, key=lambda plan: (plan.total_bytes, -plan.stage))


def _stage_plan(graph: Graph, stage: int, kinds: dict[str, int], device: Device, arena: Arena | None) -> MemoryPlan:
    """Return the plan of a stage that holds `kinds`, and what training adds to them."""
    checkpointed: tuple[int, ...] = ()
    if graph.layout.training:
        kinds = kinds | training_state_bytes(graph, stage)
        room = device.memory_bytes - sum(kinds.values())
        kinds["stored_activations"], checkpointed = stored_activations(graph, stage, room)
    return MemoryPlan(
        stage=stage,
        bytes_by_kind=kinds,
        capacity_bytes=device.memory_bytes,
        arena=arena,
        checkpointed_layers=checkpointed,
    )


def _weight_bytes(graph: Graph, stage: int, weights: tuple[tuple[int, int], ...]) -> dict[str, int]:
    """Return a stage's weights by kind; sharded ones are there in part, and whole for the two layers at work."""
    layout = graph.layout
    held = [weights[graph.block_of(layer)] for layer in graph.stages[stage]]
    element = BYTES_PER_ELEMENT[layout.options.dtypes.activations]
    return {
        "dense_weights": _with_two_gathered([each[0] for each in held], dense_shards(layout)),
        "expert_weights": _with_two_gathered([each[1] for each in held], expert_shards(layout)),
        "embedding_and_head": int(vocabulary_elements(graph, stage) * element),
    }


def _with_two_gathered(layers: Sequence[int], shards: int) -> int:
    """Return the bytes of weights in as many shards: of one each, and of the two largest layers that can be at work."""
    return sum(layers) if shards == 1 else -(-sum(layers) // shards) + 2 * max(layers)


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
    """Return the bytes that a token adds to one layer's cache on each GPU; a latent cache is replicated over TP.

    So is an indexer's key, which is FP8 with a scale of its own whatever the rest of the cache is.
    """
    if isinstance(attention, GroupedQueryAttention):
        return 2 * max(attention.num_kv_heads // tp, 1) * attention.head_dim * element_bytes
    each = attention.cache_elements_per_token() * element_bytes
    if isinstance(attention, MultiHeadLatentAttention):
        each += attention.index_elements_per_token() * ROW_BYTES_PER_ELEMENT["fp8"]
    return each


def state_bytes(attention: LinearAttention, dtypes: DtypePolicy) -> float:
    """Return the bytes that each sequence keeps for one layer of linear attention, on all GPUs together."""
    last_tokens = attention.convolution_elements() * BYTES_PER_ELEMENT[dtypes.activations]
    return attention.state_elements() * BYTES_PER_ELEMENT[dtypes.state] + last_tokens


def cache_bytes(graph: Graph, layers: Sequence[int], tokens: int, sequences: int, *, keeps_all: bool = False) -> int:
    """Return the bytes of KV cache and attention state of `layers` on one GPU.

    A window caps a sequence's share, unless the engine keeps all tokens.
    """
    each = [
        _layer_cache_bytes(graph.layout, block.attention, tokens, sequences, keeps_all=keeps_all)
        for block in graph.model.blocks
    ]
    return int(sum(each[graph.block_of(layer)] for layer in layers))


def _layer_cache_bytes(
    layout: Layout, attention: Attention | None, tokens: int, sequences: int, *, keeps_all: bool
) -> float:
    """Return what one layer with this attention keeps of them on one GPU."""
    if attention is None:
        return 0.0
    if isinstance(attention, LinearAttention):
        return sequences * state_bytes(attention, layout.options.dtypes) / layout.strategy.tp
    element = CACHE_BYTES_PER_ELEMENT[layout.options.dtypes.kv_cache]
    window = attention.sliding_window if isinstance(attention, GroupedQueryAttention) else None
    kept = tokens if window is None or keeps_all else min(tokens, sequences * window)
    return kept * cache_bytes_per_token(attention, layout.strategy.tp, element)


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
