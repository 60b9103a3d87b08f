"""Small folders of measured tables in aiconfigurator's format: few points, so far apart that much lies between them."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from moiety.calibration.table_reader import read_tables
from moiety.calibration.tables import MeasuredRates

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from moiety.calibration.tables import KernelTables
    from moiety.cluster.cluster import Cluster

Row = dict[str, object]
RELEASE = "vllm/0.24.0"
LEAST, MOST = 1, 2**20


def gemm_ms(m: float, n: float, k: float) -> float:
    """Return a time that is a power of every size, so that lines over logarithms are exact."""
    return 1e-9 * m**0.5 * n * k**0.75


def gemm_rows(dtype: str = "bfloat16") -> list[Row]:
    corners = product((16, 2**18), (16, 2**18), (LEAST, MOST))
    return [{"gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": gemm_ms(m, n, k)} for n, k, m in corners]


def moe_rows(**shape: int) -> list[Row]:
    """Return a mixture's rows: 2 us a token; a second, uneven distribution takes longer and must not count."""
    sizes: Row = {"hidden_size": 1024, "inter_size": 512, "topk": 2, "num_experts": 16, "moe_tp_size": 1}
    fixed: Row = {"moe_dtype": "bfloat16", "moe_ep_size": 1, "kernel_source": "triton", **sizes, **shape}
    return [
        {**fixed, "num_tokens": tokens, "distribution": spread, "latency": scale * tokens}
        for tokens, (spread, scale) in product((LEAST, MOST), (("balanced", 2e-3), ("power_law_1.2", 1.0)))
    ]


def attention_rows(heads: int = 16, kv_heads: int = 4, head_dim: int = 64, *, decode: bool = False) -> list[Row]:
    fixed: Row = {"num_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "window_size": 0}
    fixed |= {"kv_cache_dtype": "bfloat16", "attn_dtype": "bfloat16", "beam_width": 1}
    lengths = [(1, step) for step in (1, 65_535)] if decode else [(isl, 0) for isl in (1, 65_536)]
    return [
        {**fixed, "batch_size": batch, "isl": isl, "step": step, "latency": 1e-5 * batch * (isl + step)}
        for batch, (isl, step) in product((1, 4096), lengths)
    ]


def mla_rows(heads: int = 128, *, decode: bool = False) -> list[Row]:
    fixed: Row = {"num_heads": heads, "kv_cache_dtype": "bfloat16", "mla_dtype": "bfloat16", "tp_size": 128 // heads}
    lengths = [(1, step) for step in (1, 65_535)] if decode else [(isl, 0) for isl in (1, 65_536)]
    return [
        {**fixed, "batch_size": batch, "isl": isl, "step": step, "latency": 3e-5 * batch * (isl + step)}
        for batch, (isl, step) in product((1, 4096), lengths)
    ]


def all_reduce_rows(sizes: Sequence[int] = (2, 4, 8, 16)) -> list[Row]:
    """Return an engine's all-reduces of 1 us (graph) or 5 us (eager) for every 1,000 elements."""
    return [
        {"num_gpus": gpus, "allreduce_dtype": "bfloat16", "message_size": n, "kernel_source": name, "latency": n * ms}
        for gpus, n, (name, ms) in product(sizes, (1, 2**30), (("own_graph", 1e-6), ("own_eager", 5e-6)))
    ]


def nccl_rows(scale: float = 1.0) -> list[Row]:
    return [
        {"op_name": op, "num_gpus": gpus, "nccl_dtype": "half", "message_size": n, "latency": scale * n * 1e-6}
        for op, gpus, n in product(("all_gather", "reduce_scatter", "all_reduce"), (2, 4, 8, 16), (1, 2**30))
    ]


def deep_ep_rows(nodes: Sequence[int] = (1, 2)) -> list[Row]:
    """Return DeepEP's exchanges for few tokens: 1 us (dispatch) and 2 us (combine) a token and node."""
    return [
        {"node_num": n, "hidden_size": 1024, "num_token": t, "num_topk": 2, "num_experts": 16}
        | {"dispatch_avg_t_us": 1.0 * n * t, "combine_avg_t_us": 2.0 * n * t}
        for n, t in product(nodes, (LEAST, MOST))
    ]


def engine_exchange_rows(ranks: int = 4, nodes: int = 1, dtype: str = "fp8") -> list[Row]:
    """Return an engine's exchanges of few (3 us a token) and many tokens (5 us)."""
    fixed: Row = {"ep_size": ranks, "node_num": nodes, "hidden_size": 1024, "topk": 2, "num_experts": 16}
    return [
        {**fixed, "phase": phase, "comm_backend": f"deepep_{mode}", "comm_dtype": kept, "num_tokens": t}
        | {"latency": us * t}
        for (phase, kept), (mode, us), t in product(
            (("dispatch", dtype), ("combine", "bfloat16"), ("combine", "default")),
            (("ll", 3.0), ("ht", 5.0)),
            (LEAST, MOST),
        )
    ]


def one_sided_rows(ranks: int = 16) -> list[Row]:
    """Return exchanges inside a domain of NVLink: 7 us a token; two-sided ones would be faster and must not count."""
    fixed: Row = {"distribution": "balanced", "hidden_size": 1024, "topk": 2, "num_experts": 16, "moe_ep_size": ranks}
    return [
        {**fixed, "op_name": f"alltoall_{op}", "kernel_source": f"NVLink{way}", "moe_dtype": "fp8", "num_tokens": t}
        | {"latency": 1e-3 * us * t}
        for op, (way, us), t in product(("dispatch", "combine"), (("OneSided", 7.0), ("TwoSided", 1.0)), (LEAST, MOST))
    ]


FILES: dict[str, list[Row]] = {
    f"gemm/{RELEASE}/gemm_perf.parquet": gemm_rows(),
    f"moe/{RELEASE}/moe_perf.parquet": moe_rows(),
    f"attention/{RELEASE}/context_attention_perf.parquet": attention_rows(),
    f"attention/{RELEASE}/generation_attention_perf.parquet": attention_rows(decode=True),
    f"mla/{RELEASE}/context_mla_perf.parquet": mla_rows(),
    f"mla/{RELEASE}/generation_mla_perf.parquet": mla_rows(decode=True),
    f"comm/{RELEASE}/custom_allreduce_perf.parquet": all_reduce_rows(),
    "comm/nccl/2.9.1/nccl_perf.parquet": nccl_rows(100.0),
    "comm/nccl/2.29.2/nccl_perf.parquet": nccl_rows(),
}


def parquet(rows: Sequence[Row], device: str = "NVIDIA H100 80GB HBM3") -> bytes:
    """Return rows as a Parquet file with the columns that every table has."""
    sink = pa.BufferOutputStream()
    named = [{"framework": "VLLM", "version": "0.24.0", "device": device, **row} for row in rows]
    pq.write_table(pa.Table.from_pylist(named), sink)
    return sink.getvalue().to_pybytes()


def write_folder(folder: Path, changed: dict[str, list[Row]] | None = None) -> Path:
    """Write a system's folder and return it."""
    for name, rows in {**FILES, **(changed or {})}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(parquet(rows))
    return folder


def tables_for(cluster: Cluster, changed: dict[str, list[Row]] | None = None) -> KernelTables:
    """Return the tables of `FILES`, for the rates of a cluster."""
    files = {**FILES, **(changed or {})}
    del files["comm/nccl/2.9.1/nccl_perf.parquet"]
    inner, *outer = (cluster.bandwidth_per_gpu(tier) for tier in range(len(cluster.tiers)))
    rates = MeasuredRates(dict(cluster.device.peak_flops_per_s), inner, tuple(outer))
    read = {name: parquet(rows) for name, rows in files.items()}
    return read_tables(read, name="measured", folder="somewhere", rates=rates)
