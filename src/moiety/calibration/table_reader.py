"""Tables of measured times from aiconfigurator's Parquet files.

Source of the format: `systems/data/SYSTEM/FAMILY/BACKEND/VERSION/*_perf.parquet` of aiconfigurator-core 0.12.0.
`latency` is in milliseconds, for DeepEP in microseconds; `message_size` counts elements of the whole tensor that is
reduced, gathered or to be scattered; tokens of exchanges are those of one rank.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from moiety.calibration.tables import KernelTables, TableSource, grid_of
from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moiety.calibration.tables import Grid, Key, MeasuredRates

_Row = tuple[Any, ...]
_HALF_BYTES = 2
_NORMAL = "wideep_deepep_normal_perf.parquet"
_NAMES = frozenset(
    {
        *("gemm_dtype", "moe_dtype", "kv_cache_dtype", "attn_dtype", "mla_dtype", "allreduce_dtype", "nccl_dtype"),
        *("distribution", "kernel_source", "op_name", "comm_backend", "comm_dtype", "phase"),
    }
)
"""Columns that hold names; the others hold numbers."""
_REMEDY = "take the files as the package aiconfigurator-core holds them"


@dataclass(frozen=True, slots=True)
class TableFile:
    """How one kind of file is read: the columns that are asked for, and what key and point a row has by them."""

    name: str
    family: str
    """Folder of the system that holds it."""
    columns: tuple[str, ...]
    key: Callable[[_Row], Key | None]
    """None for rows that stand for something that no plan asks for."""
    point: Callable[[_Row], tuple[float, ...]]
    times: tuple[str, ...] = ("latency",)
    """Columns that add up to the time."""
    unit_s: float = 1e-3
    of_any_release: bool = False
    """Whether the engine's newest release that has the file stands in for one that has none."""


_ROWS: dict[str, str] = {"bfloat16": "bf16", "fp8": "fp8", "nvfp4": "fp4"}
"""Formats of exchanged rows."""


def _exchanged(kind: str, dtype: str) -> str | None:
    """Return the format of a kernel's rows; what is combined is known where all of it is in BF16."""
    return _ROWS.get(dtype) if kind == "dispatch" or dtype == "bfloat16" else None


def _deep_ep(name: str, phase: str, kind: str, dtype: str, *times: str) -> TableFile:
    """Return half of a file of DeepEP's own benchmark, of whole nodes: its dispatch is of FP8 rows."""
    return TableFile(
        name,
        "comm",
        ("hidden_size", "num_topk", "num_experts", "node_num", "num_token"),
        lambda row: (kind, phase, dtype, *row[:3], "nodes", row[3]),
        lambda row: row[4:5],
        times,
        1e-6,
        of_any_release=True,
    )


def _engine_exchange(row: _Row) -> Key | None:
    """Return the key of an engine's DeepEP kernel, for few tokens (decode) or many."""
    kind, backend, dtype, hidden, top_k, experts, ranks, nodes = row[:8]
    phase = "decode" if backend.endswith("_ll") else "prefill" if backend.endswith("_ht") else None
    rows = _exchanged(kind, dtype)
    return None if phase is None or rows is None else (kind, phase, rows, hidden, top_k, experts, "ranks", ranks, nodes)


def _one_sided(row: _Row) -> Key | None:
    """Return the key of an exchange inside a domain of NVLink that is one kernel: others prepare in another first."""
    op, source, dtype, distribution, hidden, top_k, experts, ranks = row[:8]
    kind = {"alltoall_dispatch": "dispatch", "alltoall_combine": "combine"}.get(op)
    rows = _ROWS.get(dtype) if kind == "dispatch" else "bf16"
    if kind is None or rows is None or (source, distribution) != ("NVLinkOneSided", "balanced"):
        return None
    return (kind, "any", rows, hidden, top_k, experts, "domain", ranks)


TABLE_FILES = (
    TableFile(
        "gemm_perf.parquet",
        "gemm",
        ("gemm_dtype", "k", "n", "m"),
        lambda row: ("gemm", row[0]),
        lambda row: row[1:4],
    ),
    TableFile(
        "moe_perf.parquet",
        "moe",
        (
            *("moe_dtype", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size"),
            *("num_tokens", "distribution", "kernel_source"),
        ),
        lambda row: ("moe", *row[:7]) if row[8] == "balanced" and "nongated" not in row[9] else None,
        lambda row: row[7:8],
    ),
    TableFile(
        "context_attention_perf.parquet",
        "attention",
        (
            *("num_heads", "num_key_value_heads", "head_dim", "window_size", "kv_cache_dtype", "attn_dtype"),
            *("isl", "batch_size", "step", "beam_width"),
        ),
        lambda row: ("prefill", *row[:5]) if row[5:6] + row[8:] == ("bfloat16", 0, 1) else None,
        lambda row: row[6:8],
    ),
    TableFile(
        "generation_attention_perf.parquet",
        "attention",
        (
            *("num_heads", "num_key_value_heads", "head_dim", "window_size", "kv_cache_dtype", "attn_dtype"),
            *("isl", "batch_size", "step", "beam_width"),
        ),
        lambda row: ("decode", *row[:5]) if row[5:6] + row[9:] == ("bfloat16", 1) else None,
        lambda row: (row[6] + row[8], row[7]),
    ),
    TableFile(
        "context_mla_perf.parquet",
        "mla",
        ("num_heads", "kv_cache_dtype", "mla_dtype", "isl", "batch_size", "step"),
        lambda row: ("prefill mla", *row[:2]) if row[2::3] == ("bfloat16", 0) else None,
        lambda row: row[3:5],
    ),
    TableFile(
        "generation_mla_perf.parquet",
        "mla",
        ("num_heads", "kv_cache_dtype", "mla_dtype", "isl", "batch_size", "step"),
        lambda row: ("decode mla", *row[:2]) if row[2] == "bfloat16" else None,
        lambda row: (row[3] + row[5], row[4]),
    ),
    TableFile(
        "custom_allreduce_perf.parquet",
        "comm",
        ("kernel_source", "num_gpus", "allreduce_dtype", "message_size"),
        lambda row: ("all_reduce", row[1], _launched(row[0])) if row[2] == "bfloat16" else None,
        lambda row: (_HALF_BYTES * row[3],),
    ),
    TableFile(
        "nccl_perf.parquet",
        "comm/nccl",
        ("op_name", "num_gpus", "nccl_dtype", "message_size"),
        lambda row: ("nccl", *row[:2]) if row[2] == "half" else None,
        lambda row: (_HALF_BYTES * row[3],),
    ),
    _deep_ep("wideep_deepep_ll_perf.parquet", "decode", "dispatch", "fp8", "dispatch_avg_t_us"),
    _deep_ep("wideep_deepep_ll_perf.parquet", "decode", "combine", "bf16", "combine_avg_t_us"),
    _deep_ep(_NORMAL, "prefill", "dispatch", "fp8", "dispatch_transmit_us", "dispatch_notify_us"),
    _deep_ep(_NORMAL, "prefill", "combine", "bf16", "combine_transmit_us", "combine_notify_us"),
    TableFile(
        "moe_a2a_perf.parquet",
        "comm",
        (
            *("phase", "comm_backend", "comm_dtype", "hidden_size", "topk", "num_experts", "ep_size", "node_num"),
            "num_tokens",
        ),
        _engine_exchange,
        lambda row: row[8:9],
        ("latency",),
        1e-6,
        of_any_release=True,
    ),
    TableFile(
        "trtllm_alltoall_perf.parquet",
        "comm",
        (
            *("op_name", "kernel_source", "moe_dtype", "distribution", "hidden_size", "topk", "num_experts"),
            *("moe_ep_size", "num_tokens"),
        ),
        _one_sided,
        lambda row: row[8:9],
        of_any_release=True,
    ),
)


def read_tables(files: Mapping[str, bytes], *, name: str, folder: str, rates: MeasuredRates) -> KernelTables:
    """Return the tables in `files` (bytes by path; the path's end says which of `TABLE_FILES` each is).

    Raises InputError with file, column and value for what is no such table, and where pyarrow is not installed.
    """
    grids: dict[Key, Grid] = {}
    digest = hashlib.sha256()
    for path, data in sorted(files.items()):
        digest.update(hashlib.sha256(path.encode()).digest() + hashlib.sha256(data).digest())
        for form in TABLE_FILES:
            if path.rpartition("/")[2] == form.name:
                grids |= _grids(form, data, path)
    return KernelTables(TableSource(name=name, folder=folder, sha256=digest.hexdigest()), rates, grids)


def _grids(form: TableFile, data: bytes, path: str) -> dict[Key, Grid]:
    """Return what a file holds of one kind, by key."""
    rows: dict[Key, list[tuple[tuple[float, ...], float]]] = {}
    for number, row in enumerate(_rows(data, path, (*form.columns, *form.times))):
        sizes, times = row[: len(form.columns)], row[len(form.columns) :]
        key = form.key(sizes)
        if key is not None:
            point, time = form.point(sizes), sum(times)
            _check((*point, time), path, number)
            rows.setdefault(key, []).append((point, time * form.unit_s))
    return {key: grid_of(found) for key, found in rows.items()}


def devices_in(data: bytes, path: str) -> tuple[str, ...]:
    """Return the devices that a file's rows were measured on; none where the file does not say."""
    table = _parquet(data, path)
    return tuple(sorted(set(table.column("device").to_pylist()))) if "device" in table.column_names else ()


def _launched(kernel: str) -> str:
    """Return whether a kernel was launched by itself or as part of a captured graph."""
    return "eager" if re.search(r"eager$", kernel) else "graph"


def _rows(data: bytes, path: str, columns: tuple[str, ...]) -> list[_Row]:
    """Return the values of some columns, row by row."""
    table = _parquet(data, path)
    absent = [column for column in columns if column not in table.column_names]
    if absent:
        raise InputError("the table has no such column", source=path, field=absent[0], remedy=_REMEDY)
    found = [table.column(column).to_pylist() for column in columns]
    for column, values in zip(columns, found, strict=True):
        kinds: tuple[type, ...] = (str,) if column in _NAMES else (int, float)
        wrong = [value for value in values if not isinstance(value, kinds) or isinstance(value, bool)]
        if wrong:
            rule = f"must hold a {'name' if column in _NAMES else 'number'} in every row"
            raise InputError(rule, source=path, field=column, value=repr(wrong[0]), remedy=_REMEDY)
    return list(zip(*found, strict=True))


def _check(numbers: tuple[float, ...], path: str, number: int) -> None:
    """Raise InputError where a row has a size that is no positive number, or took no time."""
    wrong = [value for value in numbers if not 0 < value < math.inf]
    if wrong:
        rule = "sizes and latency must be numbers above 0"
        raise InputError(rule, source=path, field=f"row {number}", value=wrong[0], remedy=_REMEDY)


def _parquet(data: bytes, path: str) -> Any:  # noqa: ANN401 - pyarrow has no types of its own
    """Return the Parquet table in `data`."""
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        rule = "Parquet tables are read with pyarrow, which is not installed"
        raise InputError(rule, source=path, remedy="pip install 'moiety[tables]'") from None
    failures: tuple[type[Exception], ...] = (import_module("pyarrow").ArrowException, OSError)
    try:
        return parquet.read_table(io.BytesIO(data))
    except failures as error:
        said = str(error).splitlines()[0]
        raise InputError(f"is not a Parquet table: {said}", source=path, remedy=_REMEDY) from None
