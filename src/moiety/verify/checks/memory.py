"""Memory: each part against a formula over the model's shape, the sum against the device, the arena against itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moiety.calibration.scheduling import scheduling
from moiety.dtypes import BYTES_PER_ELEMENT, ROW_BYTES_PER_ELEMENT
from moiety.strategy.stages import held_layers
from moiety.verify.closed_form import (
    cache_bytes,
    dense_weights,
    expert_weights,
    largest_expert_matrix,
    largest_projection,
    router_weights,
)
from moiety.verify.findings import Finding, judged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.dtypes import Dtype
    from moiety.model.model import Block
    from moiety.plan import Arena, DtypePolicy, MemoryPlan, Pool
    from moiety.verify.inspection import Inspection

_TOLERANCE = 0.01
"""The formulas leave out norms, biases, and the rounding of shapes to whole rows; together less than a hundredth."""
_STATE_TOLERANCE = 0.05
"""Optimizer state counts those small vectors, and tied or replicated tables in another way."""


def parts(inspection: Inspection) -> Iterator[Finding]:
    """Check that every part of the memory plan is what a formula says."""
    for pool in inspection.plan.pools:
        memory, subject = pool.memory, inspection.name_of(pool)
        if memory is None or memory.stage >= pool.strategy.pp:
            yield judged("memory-parts", subject, "the plan has no memory plan of an existing stage", holds=False)
            continue
        expected = _expected_parts(inspection, pool, memory)
        known = memory.bytes_by_kind
        for kind, (size, tolerance) in expected.items():
            actual = known.get(kind, 0)
            yield judged(
                "memory-parts",
                f"{subject}, {kind.replace('_', ' ')}",
                f"planned {actual / 1e9:.3f} GB, by formula {size / 1e9:.3f} GB (within {tolerance:.0%})",
                holds=abs(actual - size) <= tolerance * max(size, 1.0) + 1024,
                expected=size,
                actual=float(actual),
            )


def total(inspection: Inspection) -> Iterator[Finding]:
    """Check that the parts together fit the device, and are what the projection shows."""
    plan = inspection.plan
    for pool in plan.pools:
        memory, subject = pool.memory, inspection.name_of(pool)
        if memory is None:
            continue
        whole = math.fsum(memory.bytes_by_kind.values())
        capacity = plan.cluster.device.memory_bytes
        yield judged(
            "memory-fits",
            subject,
            f"{whole / 1e9:.2f} GB of {capacity / 1e9:.2f} GB ({whole / capacity:.0%}), most of it "
            f"{memory.biggest.replace('_', ' ')}",
            holds=whole <= capacity and memory.capacity_bytes == capacity,
            expected=float(capacity),
            actual=whole,
        )
        shown = pool.projection.memory_bytes_per_gpu if pool.projection else None
        yield judged(
            "memory-shown",
            subject,
            "the pool's projection shows the parts of its memory plan"
            if shown == memory.bytes_by_kind
            else "the pool's projection shows other parts than its memory plan has",
            holds=shown == memory.bytes_by_kind,
        )
        held = held_layers(plan.model.num_layers, pool.strategy.pp, plan.options.virtual_stages)
        layers = held[min(memory.stage, pool.strategy.pp - 1)]
        strays = [layer for layer in memory.checkpointed_layers if layer not in layers]
        if memory.checkpointed_layers:
            yield judged(
                "memory-checkpoints",
                subject,
                f"{len(memory.checkpointed_layers)} checkpointed layers, {len(strays)} of them not in stage "
                f"{memory.stage}",
                holds=not strays,
            )


def arena(inspection: Inspection) -> Iterator[Finding]:
    """Check that buffers that live together do not overlap, and the peak is where the highest one ends."""
    for pool in inspection.plan.pools:
        packed = pool.memory.arena if pool.memory else None
        if packed is None:
            continue
        subject = f"{inspection.name_of(pool)}, arena"
        clashes = _clashes(packed)
        peak = max((each.offset_bytes + each.size_bytes for each in packed.buffers), default=0)
        moments = {each.first_op for each in packed.buffers}
        live = max(
            (sum(b.size_bytes for b in packed.buffers if b.first_op <= moment <= b.last_op) for moment in moments),
            default=0,
        )
        yield judged(
            "arena-overlaps",
            subject,
            f"{len(packed.buffers)} buffers; {clashes} pairs live at once in the same place",
            holds=clashes == 0,
            expected=0.0,
            actual=float(clashes),
        )
        yield judged(
            "arena-peak",
            subject,
            f"highest end {peak / 1e9:.3f} GB, stated {packed.peak_bytes / 1e9:.3f} GB; most alive at once "
            f"{live / 1e9:.3f} GB, "
            f"stated {packed.live_bytes / 1e9:.3f} GB",
            holds=peak == packed.peak_bytes and live == packed.live_bytes <= peak,
            expected=float(peak),
            actual=float(packed.peak_bytes),
        )
        in_use = packed.peak_bytes if inspection.plan.options.arena else packed.unplanned_peak_bytes
        counted = pool.memory.bytes_by_kind.get("activations", 0) if pool.memory else 0
        yield judged(
            "arena-counted",
            subject,
            f"the arena takes {in_use / 1e9:.3f} GB, the memory plan counts {counted / 1e9:.3f} GB of activations",
            holds=in_use == counted,
            expected=float(in_use),
            actual=float(counted),
        )
        largest = _expanded(inspection, pool)
        if largest:
            yield judged(
                "arena-expands",
                subject,
                f"one matrix at a time is expanded, of up to {largest / 1e9:.3f} GB; the arena has "
                f"{packed.live_bytes / 1e9:.3f} GB that are alive at once",
                holds=packed.live_bytes >= largest,
                expected=largest,
                actual=float(packed.live_bytes),
            )


def _expanded(inspection: Inspection, pool: Pool) -> float:
    """Return the bytes of the largest matrix that the run time expands for its product; 0 where it expands none."""
    plan, strategy = inspection.plan, pool.strategy
    model, dtypes = plan.model, plan.options.dtypes
    on_cpu = plan.cluster.device.architecture == "cpu"
    if plan.engine != "moiety" or pool.role == "training":
        return 0.0
    sizes = [
        *(
            largest_projection(each, model.hidden_size, strategy.tp)
            for each in model.blocks
            if dtypes.weights == "fp8"  # only experts are held in MXFP4
        ),
        *(
            largest_expert_matrix(each, model.hidden_size, strategy.etp)
            for each in model.blocks
            if dtypes.experts == "mxfp4" or (dtypes.experts == "fp8" and on_cpu)  # GPUs multiply by FP8
        ),
    ]
    return max(sizes, default=0.0) * BYTES_PER_ELEMENT[dtypes.activations]


def _clashes(packed: Arena) -> int:
    buffers = packed.buffers
    return sum(
        first.first_op <= second.last_op
        and second.first_op <= first.last_op
        and first.offset_bytes < second.offset_bytes + second.size_bytes
        and second.offset_bytes < first.offset_bytes + first.size_bytes
        for index, first in enumerate(buffers)
        for second in buffers[index + 1 :]
    )


def _router_dtype(block: Block, dtypes: DtypePolicy) -> Dtype:
    """Return the format that a layer's router stays in: that of the activations, or FP32 where it always is."""
    return "fp32" if block.moe is not None and block.moe.router_in_fp32 else dtypes.activations


def _expected_parts(inspection: Inspection, pool: Pool, memory: MemoryPlan) -> dict[str, tuple[float, float]]:
    """Return (bytes, relative tolerance) by kind for the stage of the memory plan."""
    plan, strategy = inspection.plan, pool.strategy
    model, dtypes, options = plan.model, plan.options.dtypes, plan.options
    hidden = model.hidden_size
    blocks = [
        model.blocks[model.layer_blocks[i]]
        for i in held_layers(model.num_layers, strategy.pp, plan.options.virtual_stages)[memory.stage]
    ]
    each = [
        dense_weights(block, hidden, strategy.tp) * BYTES_PER_ELEMENT[dtypes.weights]
        + router_weights(block, hidden) * BYTES_PER_ELEMENT[_router_dtype(block, dtypes)]
        for block in blocks
    ]
    dense_shards, expert_shards = _shards(inspection, pool)
    routed = [
        expert_weights(
            block,
            hidden,
            (getattr(block.feed_forward, "num_experts", 0) + options.redundant_experts) / strategy.ep,
            strategy.etp,
        )
        * BYTES_PER_ELEMENT[dtypes.experts]
        for block in blocks
    ]
    tables = _tables(inspection, pool, memory)
    element = BYTES_PER_ELEMENT[dtypes.activations]
    engine = inspection.calibration.engines[plan.engine]
    expected = {
        "dense_weights": (_held(each, dense_shards), _TOLERANCE),
        "expert_weights": (_held(routed, expert_shards), _TOLERANCE),
        "embedding_and_head": (tables * model.vocab_size / strategy.tp * hidden * element, _TOLERANCE),
        "communication_buffers": (_exchange_buffers(inspection, pool), _TOLERANCE),
        "kv_cache": (0.0, 0.0),
    }
    weights = math.fsum(expected[kind][0] for kind in ("dense_weights", "expert_weights", "embedding_and_head"))
    left = max(plan.cluster.device.memory_bytes - weights - engine.reserve_bytes, 0.0)
    kept = engine.reserve_bytes + engine.unused_share * left
    expected["engine_reserve"] = (kept, _TOLERANCE if engine.unused_share else 0.0)
    if pool.role != "training":
        tokens, sequences = _cached(inspection, pool)
        whole = scheduling(plan.engine).keeps_all_tokens
        cache = math.fsum(
            cache_bytes(block, strategy.tp, tokens, sequences, dtypes, keeps_all=whole) for block in blocks
        )
        expected["kv_cache"] = (cache, _TOLERANCE)
    else:
        expected |= _training_state(inspection, pool, memory)
    return expected


def _shards(inspection: Inspection, pool: Pool) -> tuple[int, int]:
    """Return over how many ranks dense parameters and experts are sharded."""
    strategy, options = pool.strategy, inspection.plan.options
    if options.fully_sharded and pool.role == "training":
        return strategy.attn_dp * strategy.instances, strategy.instances
    return (strategy.attn_dp if options.dense_parameter_sharding else 1), 1


def _held(layers: list[float], shards: int) -> float:
    """Return the weights of layers in as many shards, two of them whole as well where there are several."""
    return math.fsum(layers) / shards + (2 * max(layers) if shards > 1 else 0.0)


def _tables(inspection: Inspection, pool: Pool, memory: MemoryPlan) -> int:
    """Return how many vocabulary tables the stage holds: the first has the embedding, the last the head, tied one."""
    ends = (memory.stage == 0) + (memory.stage == pool.strategy.pp - 1)
    return min(ends, 1 if inspection.plan.model.tie_word_embeddings else 2)


def _cached(inspection: Inspection, pool: Pool) -> tuple[int, int]:
    """Return (tokens, sequences) in the cache of an attention group when it is fullest."""
    schedule, workload = pool.schedule, inspection.plan.workload
    if pool.role == "prefill":
        tokens = schedule.num_microbatches * schedule.prefill_tokens
        return tokens, max(-(-tokens // schedule.prompt_tokens), 1)
    sequences = schedule.num_microbatches * schedule.decode_sequences
    return sequences * (workload.input_tokens + workload.output_tokens), sequences


def _exchange_buffers(inspection: Inspection, pool: Pool) -> float:
    """Return what dispatch and combine receive: k rows a token from the stage, and one row a token back."""
    plan, strategy, moe = inspection.plan, pool.strategy, inspection.plan.model.moe
    if moe is None or strategy.attn_dp == 1 or strategy.ep == 1:
        return 0.0
    if pool.role == "mixed":
        tokens = _burst_tokens(inspection, pool) + pool.schedule.decode_sequences
    else:
        tokens = (pool.schedule.prefill_tokens + pool.schedule.decode_sequences) // strategy.cp
    rows = max(tokens * strategy.attn_dp * moe.top_k // strategy.ep, 1)
    dtypes = plan.options.dtypes
    wire = rows * ROW_BYTES_PER_ELEMENT[dtypes.dispatch] + tokens * ROW_BYTES_PER_ELEMENT[dtypes.combine]
    in_flight = 2 if plan.options.two_batch_overlap and pool.schedule.num_microbatches > 1 else 1
    return in_flight * wire * moe.row_size(plan.model.hidden_size)


def _burst_tokens(inspection: Inspection, pool: Pool) -> int:
    """Return the prompt tokens of a micro-batch when a whole chunk of 8,192 is in the step."""
    chunk = min(inspection.plan.workload.input_tokens, 8192)
    return max(-(-chunk // pool.schedule.num_microbatches), pool.schedule.prefill_tokens)


def _training_state(inspection: Inspection, pool: Pool, memory: MemoryPlan) -> dict[str, tuple[float, float]]:
    """Return gradients (in the activations' format) and AdamW's state per local parameter, sharded as the options say.

    The state is two FP32 moments, and an FP32 master of weights that are not FP32 themselves.
    """
    plan, strategy = inspection.plan, pool.strategy
    model = plan.model
    blocks = [
        model.blocks[model.layer_blocks[i]]
        for i in held_layers(model.num_layers, strategy.pp, plan.options.virtual_stages)[memory.stage]
    ]
    mixtures = [block.moe for block in blocks if block.moe is not None]
    once = sum(part.num_experts * part.expert_parameters(model.hidden_size) for part in mixtures)
    copies = sum(plan.options.redundant_experts * part.expert_parameters(model.hidden_size) for part in mixtures)
    tables = _tables(inspection, pool, memory) * model.vocab_size * model.hidden_size
    dense = tables / strategy.tp + math.fsum(
        dense_weights(block, model.hidden_size, strategy.tp) + router_weights(block, model.hidden_size)
        for block in blocks
    )
    experts = (once + copies) / (strategy.ep * strategy.etp)
    dense_shards, expert_shards = _shards(inspection, pool)
    local = dense / dense_shards + experts / expert_shards
    computed = inspection.plan.options.dtypes.activations
    return {
        "gradients": (BYTES_PER_ELEMENT[computed] * local, _STATE_TOLERANCE),
        "optimizer_state": ((8 if computed == "fp32" else 12) * local, _STATE_TOLERANCE),
    }
