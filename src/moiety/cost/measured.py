"""Times that tables hold: which row of the tables an op is, and its time where the machine is slower than theirs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moiety.cost.collective import collective_transfer
from moiety.cost.roofline import compute_seconds
from moiety.graph.op import AttentionCore, Gemm

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.calibration.tables import KernelTables
    from moiety.cluster.cluster import Cluster
    from moiety.cluster.device import Device
    from moiety.cost.collective import Transfer
    from moiety.dtypes import Dtype
    from moiety.graph.graph import Graph
    from moiety.graph.op import AttentionShape, Collective, MemoryPass
    from moiety.model.feed_forward import MoeFeedForward

_DENSE_NAMES: dict[Dtype, str] = {
    "bf16": "bfloat16",
    "fp8": "fp8_block",
    "fp4": "nvfp4",
    "int8": "int8_wo",
    "int4": "int4_wo",
}
"""The tables' names of the formats of weights, scales as in `dtypes.py`."""
_EXPERT_NAMES: dict[Dtype, str] = {
    "bf16": "bfloat16",
    "fp8": "fp8_block",
    "fp4": "nvfp4",
    "int4": "int4_wo",
    "mxfp4": "w4a16_mxfp4",
}
_CACHE_NAMES: dict[Dtype, str] = {"bf16": "bfloat16", "fp8": "fp8"}
_LATENT_DIMS = (192, 128, 576)
"""Query, value and latent of the heads that latent attention was measured with: DeepSeek-V3's."""


def table_seconds(
    work: Gemm | AttentionCore | MemoryPass,
    graph: Graph,
    moe: MoeFeedForward | None,
    tables: KernelTables,
    *,
    load: float = 1.0,
) -> float | None:
    """Return the measured seconds of an op on the compute stream, alone; None where the tables do not cover it."""
    if isinstance(work, Gemm):
        if work.times != 1 or work.activation_dtype != "bf16":
            return None
        if work.experts:
            return None if moe is None else _experts(work, graph, moe, tables, load)
        name = _DENSE_NAMES.get(work.weight_dtype)
        return None if name is None else tables.seconds(("gemm", name), work.k, work.n, work.m)
    if isinstance(work, AttentionCore) and work.shape is not None and work.dtype == "bf16":
        return _attention(work.phase, work.shape, tables)
    return None


def _attention(phase: str, shape: AttentionShape, tables: KernelTables) -> float | None:
    cache = _CACHE_NAMES.get(shape.cache_dtype)
    if cache is None:
        return None
    if not shape.latent_dim:
        key = (phase, shape.heads, shape.kv_heads, shape.head_dim, shape.window, cache)
        return tables.seconds(key, shape.tokens, shape.sequences)
    if (shape.head_dim, shape.value_dim, shape.latent_dim) != _LATENT_DIMS:
        return None
    return tables.seconds((f"{phase} mla", shape.heads, cache), shape.tokens, shape.sequences)


def _experts(work: Gemm, graph: Graph, moe: MoeFeedForward, tables: KernelTables, load: float) -> float | None:
    """Return one product's part, by FLOPs, of the measured kernel that does all three of a gated mixture.

    It was measured with every token of the group on the GPU, which leaves out those for other GPUs' experts. Where
    tokens are dispatched the GPU sees only its own, which is another kernel: the tables do not cover that.
    """
    layout, hidden = graph.layout, graph.model.hidden_size
    name = _EXPERT_NAMES.get(work.weight_dtype)
    if name is None or layout.routes_tokens or layout.options.redundant_experts or not layout.options.fused_kernels:
        return None
    if not moe.gated or moe.latent_size is not None:
        return None
    strategy, inner = layout.strategy, moe.expert_intermediate_size
    key = ("moe", name, hidden, inner, moe.top_k, moe.num_experts, strategy.etp, strategy.ep)
    whole = tables.seconds(key, work.m * load * strategy.ep / moe.top_k)
    return None if whole is None else whole * work.n * work.k / (3 * hidden * (inner // strategy.etp))


def slowdown(
    work: Gemm | AttentionCore | MemoryPass,
    device: Device,
    calibration: Calibration,
    tables: KernelTables,
    *,
    load: float,
    sm_share: float,
) -> float:
    """Return how much longer the law says an op takes than on the machine of the tables: clock and SMs that are left.

    Exactly 1 on that machine with all its SMs.
    """
    peaks = dict(tables.rates.peak_flops_per_s)
    if sm_share == 1 and peaks == device.peak_flops_per_s:
        return 1.0
    theirs = device.model_copy(update={"peak_flops_per_s": peaks})
    here = compute_seconds(work, device, calibration, load=load, sm_share=sm_share)
    return here / compute_seconds(work, theirs, calibration, load=load)


def table_transfer(
    work: Collective, ranks: tuple[int, ...], cluster: Cluster, calibration: Calibration, *, decode: bool
) -> tuple[Transfer, bool] | None:
    """Return the measured time of a collective over `ranks`, and whether it is as measured; None where there is none.

    All that was measured was measured inside one node, so a group that reaches beyond one is never covered. The links
    are busy for the part of the time that the law gives them; where they are slower than those of the tables, the
    whole grows as the law does.
    """
    tables = calibration.tables
    if tables is None or len({cluster.node_of(rank) for rank in ranks}) > 1 or cluster.tier_of_group(ranks):
        return None
    seconds = _collective_seconds(work, len(ranks), tables, decode=decode)
    if seconds is None:
        return None
    law = collective_transfer(work.kind, work.payload_bytes, ranks, cluster, calibration)
    as_measured = cluster.bandwidth_per_gpu(0) == tables.rates.link_bytes_per_s
    if not as_measured:
        inner = cluster.tiers[0]
        faster = inner.bandwidth_bytes_per_s * tables.rates.link_bytes_per_s / cluster.bandwidth_per_gpu(0)
        tiers = (inner.model_copy(update={"bandwidth_bytes_per_s": faster}), *cluster.tiers[1:])
        theirs = cluster.model_copy(update={"tiers": tiers})
        seconds *= law.seconds / collective_transfer(work.kind, work.payload_bytes, ranks, theirs, calibration).seconds
    busy = tuple(each * seconds / law.seconds for each in law.tier_seconds)
    return replace(law, seconds=seconds, tier_seconds=busy), as_measured


def _collective_seconds(work: Collective, size: int, tables: KernelTables, *, decode: bool) -> float | None:
    """Return the engine's own all-reduce, captured in a graph when decoding; else the library's collective."""
    if work.kind == "all_reduce":
        for launched in ("graph", "eager") if decode else ("eager", "graph"):
            seconds = tables.seconds(("all_reduce", size, launched), work.payload_bytes)
            if seconds is not None:
                return seconds
    return tables.seconds(("nccl", work.kind, size), work.payload_bytes)
