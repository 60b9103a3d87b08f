"""What a micro-batch of a training framework does in one layer: priced ops, sorted by what limits them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.op import AttentionCore, Collective, Gemm, MemoryPass
from moiety.graph.sharding import is_sharding
from moiety.model.attention import LinearAttention

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from moiety.cost.price import OpPrice
    from moiety.graph.op import Op
    from moiety.model.model import Block
    from moiety.projection.training_casts import Memory
    from moiety.strategy.strategy import Strategy

Captured = Literal["full", "attn", "mamba", "mlp", "moe_router", "moe_preprocess", "moe"]
"""Parts of a step that CUDA graphs may hold, as Megatron-LM's `--cuda-graph-scope` names them; `full`: all of it."""
Recomputed = Literal["nothing", "moe", "layers"]
"""What runs again before its backward pass: nothing, the feed-forward part of layers with experts, whole layers."""

_SEQUENCE_PARALLEL = frozenset({"input_norm", "attn_out_norm", "post_norm", "ffn_out_norm", "residual_add"})
"""Passes that tensor parallelism divides over the tokens (`--sequence-parallel`, Korthikanti et al. 2022)."""
_FEED_FORWARD = (
    *("post_norm", "router", "dispatch", "expert_", "combine", "shared_", "dense_", "latent_", "ffn_", "residual_add"),
)
"""How the names of a feed-forward part's ops begin (`graph/feed_forward.py`)."""
_GRADIENT_BYTES = 4
"""A weight's gradient in BF16, read and written again in every micro-batch as it adds up."""
_AGAIN = 3.5 / 2.5
"""A backward pass that makes its forward pass again, over one that does not (`graph/training.py`)."""
_EXCHANGE_LAUNCHES = 4
"""Counts of tokens, their sum over the group, the permutation, the exchange."""


@dataclass(frozen=True, slots=True)
class LayerWork:
    """Seconds and launches of a layer's pass, forward or backward, on one GPU."""

    products_s: float = 0.0
    """Products and attention, at full clock."""
    passes_s: float = 0.0
    """Kernels that only move bytes, casts to narrow formats and the scans of Mamba-2 among them."""
    accumulation_s: float = 0.0
    """Gradients of weights, added to those of the micro-batches before."""
    exchange_s: float = 0.0
    """Dispatch and combine."""
    background_s: float = 0.0
    """Sums over tensor-parallel ranks, and keys and values from context-parallel ones, in parts beside products."""
    launches: float = 0.0
    """Kernels that the host launches one by one."""
    paired_launches: float = 0.0
    """Those of layers that the host goes through for two micro-batches in turns, piece by piece."""
    gradients_s: float = 0.0
    """Reductions of gradients over copies of the weights, this micro-batch's share of them."""
    sharding_s: float = 0.0
    """Gathering of sharded weights and scattering of their gradients, beside everything else."""

    def times(self, factor: float) -> LayerWork:
        """Return the work of `factor` such passes."""
        return LayerWork(*(factor * getattr(self, each.name) for each in fields(self)))


def total(works: Iterable[LayerWork]) -> LayerWork:
    """Return the work of several passes together."""
    listed = list(works)
    return LayerWork(*(sum(getattr(work, each.name) for work in listed) for each in fields(LayerWork)))


def layer_work(
    prices: Iterable[OpPrice],
    block: Block | None,
    strategy: Strategy,
    captured: Collection[Captured],
    memory: Memory,
) -> LayerWork:
    """Return the work of the priced ops of a layer; of what is no layer's (`block` None), nothing is captured."""
    return total(_op_work(price, block, strategy, captured, memory) for price in prices)


def recomputed_work(forward: tuple[OpPrice, ...], block: Block, recomputed: Recomputed) -> tuple[OpPrice, ...]:
    """Return the forward ops of a layer that run again; its weights are gathered then as they would be backward."""
    if recomputed == "nothing" or (recomputed == "moe" and block.moe is None):
        return ()
    again = (each for each in forward if not is_sharding(each.op))
    return tuple(each for each in again if recomputed == "layers" or _is_after_attention(each.op))


def _op_work(
    price: OpPrice,
    block: Block | None,
    strategy: Strategy,
    captured: Collection[Captured],
    memory: Memory,
) -> LayerWork:
    op, work, seconds = price.op, price.op.work, price.seconds
    if isinstance(work, Collective) and work.bulk:
        return LayerWork(sharding_s=seconds) if is_sharding(op) else LayerWork(gradients_s=seconds)
    launches = 0.0 if _is_captured(op, block, captured) else _launches(op, block, strategy)
    if isinstance(work, Collective):
        if work.axis in {"tp", "cp"}:
            return LayerWork(background_s=seconds, launches=launches)
        return LayerWork(exchange_s=seconds, launches=launches)
    if isinstance(work, MemoryPass):
        divided = strategy.tp if op.name.removesuffix(".backward") in _SEQUENCE_PARALLEL else 1
        return LayerWork(passes_s=seconds / divided, launches=launches)
    if isinstance(work, AttentionCore):
        mamba = _mamba(block)
        passes_s = _mamba_passes_s(price, mamba, memory.bytes_per_s) if mamba else 0.0
        return LayerWork(products_s=0.0 if mamba else seconds, passes_s=passes_s, launches=launches)
    added = work.groups * work.n * work.k * _GRADIENT_BYTES / memory.bytes_per_s if _is_backward(op) else 0.0
    return LayerWork(
        products_s=seconds,
        passes_s=_cast_bytes(op, work, memory) / memory.bytes_per_s,
        accumulation_s=added,
        launches=launches,
    )


def _mamba(block: Block | None) -> LinearAttention | None:
    """Return a layer's Mamba-2, None where it has none."""
    attention = block.attention if block is not None else None
    return attention if isinstance(attention, LinearAttention) and attention.variant == "mamba2" else None


def _mamba_passes_s(price: OpPrice, attention: LinearAttention, bytes_per_s: float) -> float:
    """Return the seconds of a Mamba-2 layer's scan, convolution and gated norm, all of which go through memory.

    The scan is several kernels that hand chunks' states to each other. Its backward pass makes what it needs of scan
    and convolution again (`mamba_split_conv1d_scan_combined`, which Megatron-LM trains with).
    """
    assert price.op.output is not None, "a scan has rows"
    tokens, values = price.op.output.shape
    keys = attention.num_key_heads * attention.key_head_dim / (attention.num_value_heads * attention.value_head_dim)
    element = BYTES_PER_ELEMENT[price.op.output.dtype] / bytes_per_s
    convolution, norm = 2 * tokens * values * (1 + 2 * keys) * element, 3 * tokens * values * element
    if not _is_backward(price.op):
        return price.seconds + convolution + norm
    return price.seconds * _AGAIN + 3 * convolution + 2 * norm


def _is_backward(op: Op) -> bool:
    return op.name.endswith(".backward")


def _is_narrow(work: Gemm) -> bool:
    return BYTES_PER_ELEMENT[work.weight_dtype] < BYTES_PER_ELEMENT[work.activation_dtype]


def _cast_bytes(op: Op, work: Gemm, memory: Memory) -> float:
    """Return the bytes that rows of a narrow product move while they are cast.

    Forward the rows that go in, backward the gradients of those that came out.
    """
    if not _is_narrow(work):
        return 0.0
    width = work.n if _is_backward(op) else work.k
    wide, narrow = BYTES_PER_ELEMENT[work.activation_dtype], BYTES_PER_ELEMENT[work.weight_dtype]
    return memory.cast(work.weight_dtype).bytes(work.m * width, wide, narrow)


def _launches(op: Op, block: Block | None, strategy: Strategy) -> float:
    """Return the kernels of an op: a grouped product is one for each expert, before a narrow one one casts all rows."""
    work, backward = op.work, _is_backward(op)
    if isinstance(work, Collective):
        return _EXCHANGE_LAUNCHES if work.kind in {"dispatch", "combine"} else 1
    if isinstance(work, AttentionCore):
        return 3 if backward else 1
    if isinstance(work, MemoryPass):
        return 2 if backward else 1
    moe = block.moe if block is not None and work.experts else None
    experts = moe.num_experts / strategy.ep if moe is not None else 1
    return experts * (2 if backward else 1) + (1 if _is_narrow(work) else 0)


def _is_captured(op: Op, block: Block | None, captured: Collection[Captured]) -> bool:
    """Return whether a graph holds an op: those of the experts, of what comes before them, or of the attention."""
    if block is None or "full" in captured:
        return block is not None
    work = op.work
    exchanged = isinstance(work, Collective) and work.kind in {"dispatch", "combine"}
    if exchanged or (isinstance(work, Gemm | MemoryPass) and work.experts):
        return "moe" in captured
    if block.feed_forward is None or not _is_after_attention(op):
        return ("mamba" if _mamba(block) else "attn") in captured
    return ("mlp" if block.moe is None else "moe_router") in captured


def _is_after_attention(op: Op) -> bool:
    """Return whether an op is of a layer's feed-forward part."""
    return op.name.removesuffix(".backward").startswith(_FEED_FORWARD)
