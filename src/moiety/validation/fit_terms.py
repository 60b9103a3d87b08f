"""Serving rows as the terms of the cost model, so that constants can be changed without building graphs again."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moiety.calibration.catalog import load_calibration
from moiety.calibration.scheduling import hides_shared_experts
from moiety.cost.collective import collective_transfer, fan_out
from moiety.cost.expert_exchange import exchange_transfer
from moiety.cost.price import distinct_groups
from moiety.cost.roofline import padded_rows, product_seconds, roofline_kind
from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.feed_forward import moves_tokens, of_shared_experts
from moiety.graph.graph import build_step_graph
from moiety.graph.op import AttentionCore, Collective, Gemm
from moiety.model.feed_forward import MoeFeedForward
from moiety.plan import Schedule
from moiety.projection.admission import CHUNK_TOKENS
from moiety.projection.engine_step import num_kernels
from moiety.projection.serving import filled_tokens, starts_cold, whole_sequences

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from moiety.calibration.calibration import Calibration, RooflineKind
    from moiety.dtypes import Dtype
    from moiety.graph.graph import Graph
    from moiety.graph.op import Op
    from moiety.projection.serving_pool import ServingPool

LINES: tuple[RooflineKind, ...] = (
    "dense_gemm",
    "grouped_gemm_decode",
    "grouped_gemm_prefill",
    "attention_prefill",
    "attention_decode_gqa",
    "attention_decode_mla",
    "attention_linear",
    "memory_pass",
)
FORMATS: tuple[Dtype, ...] = ("fp8", "fp4", "mxfp4")
_BLOCK_FP8 = len(FORMATS) + 1
"""The place after those of the formats: dense FP8 weights with a scale a block."""
COLLECTIVE, FIXED = len(LINES), len(LINES) + 1
"""Kinds of term beyond the rooflines: transfers inside a domain of links, and seconds that no constant changes."""
GROUPED = {"grouped_gemm_decode", "grouped_gemm_prefill"}
MOVING, BESIDE = 1, 2
"""Streams of terms: tokens on their way to the experts, and the shared experts that are computed meanwhile."""


@dataclass(frozen=True, slots=True)
class StepTerms:
    """One step, as `terms` [terms][columns].

    The columns: count, part, stream, kind, format + 1, compute or latency weight, memory or wire seconds. A part is a
    kind of layers, or what comes before or after them all; what it has on the stream `BESIDE` is computed while what it
    has on `MOVING` is under way.
    """

    terms: NDArray[np.float64]
    kernels: int


@dataclass(frozen=True, slots=True)
class RowTerms:
    """A row: the steps of its decoding workers, and the numbers of the law that the steps go into."""

    decode: StepTerms
    """A step without prompts; of prompts measured by themselves, one of theirs."""
    chunk: StepTerms
    """A step that holds a chunk of a prompt: beside the decoding ones, or alone, as the engine does it."""
    filled: StepTerms
    """The same filled with the prompts of all sequences, as far as there is room."""
    offered: float
    running: float
    sequences: int
    """Sequences that such a step decodes, whole."""
    thrown_out: float
    """Answers' times that a mean sequence waits after its first token."""
    chunks: float
    filled_chunks: float
    """Such steps that a prompt takes."""
    mixtures: int
    captured_prompts: bool
    """Steps with prompts replay captured graphs."""
    admission_steps: float
    """Steps until a mean prompt is taken up."""
    mixes: bool
    """Steps that hold prompts decode too."""
    equal_lengths: bool
    """All requests have prompts and answers of the same length."""
    cold: bool
    """The prompts that the run starts with fill a step for the first time."""
    fp4_experts: bool
    prompts_alone: bool = False
    """Prompts were measured by themselves: no step decodes."""


def row_terms(pool: ServingPool, concurrency: int, *, computes_prompts: bool = True, offline: bool = False) -> RowTerms:
    """Return the terms of a row's workers that decode; prompts may be computed elsewhere, or wait and fill steps."""
    work = pool.workload
    offered = max(concurrency / pool.num_groups, 1.0)
    running = min(offered, pool.capacity())
    sequences, context = whole_sequences(running), work.decode_context_tokens
    chunk = CHUNK_TOKENS if offline else min(work.input_tokens, pool.step_tokens)
    filled = filled_tokens(pool, running)
    beside = sequences if pool.scheduling.mixes_prefill else 0
    return RowTerms(
        decode=_step(pool, 0, sequences, context),
        chunk=_step(pool, chunk, beside, context),
        filled=_step(pool, filled, beside, context),
        offered=offered,
        running=running,
        sequences=sequences,
        thrown_out=pool.thrown_out(offered, running) if computes_prompts else 0.0,
        chunks=work.input_tokens / chunk if computes_prompts else 0.0,
        filled_chunks=work.input_tokens / filled if computes_prompts else 0.0,
        mixtures=pool.model.num_moe_layers,
        captured_prompts=pool.captured_prompts,
        admission_steps=pool.admission_steps(running),
        mixes=pool.scheduling.mixes_prefill,
        equal_lengths=pool.equal_lengths,
        cold=starts_cold(pool, running),
        fp4_experts=pool.options.dtypes.experts == "fp4",
    )


def phase_terms(pool: ServingPool, schedule: Schedule) -> RowTerms:
    """Return the terms of a phase that was measured by itself, one such step after the other."""
    step = _step(pool, schedule.prefill_tokens, schedule.decode_sequences, schedule.context_tokens)
    load = row_terms(pool, pool.num_groups, computes_prompts=False)
    prompts_alone = schedule.decode_sequences == 0
    return replace(load, decode=step, sequences=schedule.decode_sequences, prompts_alone=prompts_alone)


def _step(pool: ServingPool, prefill_tokens: int, sequences: int, context: int) -> StepTerms:
    schedule = Schedule(
        num_microbatches=1,
        prefill_tokens=prefill_tokens,
        prompt_tokens=pool.workload.input_tokens if prefill_tokens else 0,
        decode_sequences=sequences,
        context_tokens=context,
    )
    graph = build_step_graph(pool.model, pool.strategy, schedule, pool.options, training=False)
    terms: list[tuple[float, ...]] = []
    for part, (ops, count, block) in enumerate(_parts(graph)):
        moe = graph.model.blocks[block].moe if block is not None else None
        terms += [(count, part, _stream(op, pool), *_term(op, pool, moe, decode=prefill_tokens == 0)) for op in ops]
    return StepTerms(np.array(terms, dtype=np.float64), num_kernels(graph))


def _parts(graph: Graph) -> Iterable[tuple[Sequence[Op], int, int | None]]:
    for block, count in Counter(graph.model.layer_blocks).items():
        yield graph.layers[block], count, block
    yield graph.embedding, 1, None
    yield graph.head, 1, None


def _stream(op: Op, pool: ServingPool) -> int:
    if not hides_shared_experts(pool.engine):
        return 0
    return MOVING if moves_tokens(op) else BESIDE if of_shared_experts(op) else 0


def _term(op: Op, pool: ServingPool, moe: object, *, decode: bool) -> tuple[float, ...]:
    work, device = op.work, pool.cluster.device
    if isinstance(work, Collective):
        return _transfer_term(work, pool, moe, decode=decode)
    kind = roofline_kind(work)
    bandwidth = device.memory_bandwidth_bytes_per_s
    if isinstance(work, Gemm):
        line = pool.calibration.roofline[kind]
        if line.tiles is not None:  # a kernel as it was measured alone
            return (FIXED, 0, 0.0, product_seconds(work, device, line))
        flops = 2.0 * padded_rows(work.m, work.groups, line) * work.n * work.k * work.times
        moved = work.weight_bytes + work.m * (work.k + work.n) * BYTES_PER_ELEMENT[work.activation_dtype] * work.times
        known = FORMATS.index(work.weight_dtype) + 1 if work.weight_dtype in FORMATS else 0
        form = _BLOCK_FP8 if work.block_scales else known
        return (LINES.index(kind), form, flops / device.peak(work.weight_dtype), moved / bandwidth)
    peak = device.peak(work.dtype) if isinstance(work, AttentionCore) else device.peak("fp32")
    return (LINES.index(kind), 0, work.flops / peak, work.bytes / bandwidth)


def _transfer_term(work: Collective, pool: ServingPool, moe: object, *, decode: bool) -> tuple[float, ...]:
    """Return a transfer inside one domain as weights of latency and wire; any other as the seconds it takes.

    The place of the format says whether it is an all-reduce.
    """
    if work.kind in {"dispatch", "combine"}:
        assert isinstance(moe, MoeFeedForward), "only mixtures exchange tokens"
        found = exchange_transfer(work, moe, pool.strategy, pool.cluster, load_calibration(), decode=decode)
        return (FIXED, 0, 0.0, found.seconds)
    spans = tuple(tier.num_gpus for tier in pool.cluster.tiers)
    group = distinct_groups(pool.strategy, work.axis, 0, spans)[0]
    parts = fan_out(group, spans)
    perfect = perfect_links(pool.calibration)
    wire = collective_transfer(work.kind, work.payload_bytes, group, pool.cluster, perfect)
    if any(count > 1 for count in parts[1:]):
        return (
            FIXED,
            0,
            0.0,
            collective_transfer(work.kind, work.payload_bytes, group, pool.cluster, pool.calibration).seconds,
        )
    return (COLLECTIVE, int(work.kind == "all_reduce"), latency_weight(parts[0]), sum(wire.tier_seconds))


def latency_weight(parts: int) -> float:
    """Return the start-up time of a group relative to the constant: a third more for each doubling."""
    return 1 + math.log2(max(parts, 2)) / 3


def group_size(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the GPUs of groups with these `latency_weight`s."""
    return 2.0 ** (3 * (weight - 1))


def perfect_links(calibration: Calibration) -> Calibration:
    """Return the constants under which a transfer takes its bytes over the links' bandwidth."""
    constants = calibration.collectives
    count = len(constants.group_sizes)
    update = {
        "link_efficiency": (1.0,) * count,
        "large_efficiency": 1.0,
        "in_network_gain": 1.0,
        "second_start": 0.0,
    }
    return calibration.model_copy(update={"collectives": constants.model_copy(update=update)})
