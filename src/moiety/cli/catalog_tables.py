"""The lists of the catalogue: one row an entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.cluster.catalog import catalog_clusters, load_cluster
from moiety.model.catalog import catalog_models, load_catalog_model
from moiety.units import format_si
from moiety.verify.claims import catalog_claims, load_claims
from moiety.workload.catalog import catalog_workloads, load_workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class EntryList:
    """One kind of entry: its columns (those of numbers begin with `>`), and what makes its rows."""

    title: str
    columns: tuple[str, ...]
    entries: Callable[[], Iterator[dict[str, Cell]]]

    def records(self) -> list[dict[str, Cell]]:
        """Return the entries with exact numbers."""
        return list(self.entries())

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the entries as people read them."""
        for entry in self.entries():
            yield tuple(_said(key, value) for key, value in entry.items())


_UNITS = {"_bytes_per_s": "B/s", "_bytes": "B", "_flops_per_s": "FLOPS"}


def _said(key: str, value: Cell) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if key.startswith(("num_parameters", "num_active")):
        return f"{value / 1e9:,.1f} B"
    for ending, unit in _UNITS.items():
        if key.endswith(ending):
            return format_si(value, unit)
    return f"{value:,}"


def _models() -> Iterator[dict[str, Cell]]:
    for name in catalog_models():
        model = load_catalog_model(name)
        moe = model.moe
        yield {
            "name": name,
            "architecture": model.architecture,
            "num_parameters": model.num_parameters,
            "num_active_parameters": model.num_active_parameters,
            "num_layers": model.num_layers,
            "num_experts": moe.num_experts if moe else None,
            "top_k": moe.top_k if moe else None,
            "weights": model.expert_dtype if moe else model.weight_dtype,
        }


def _clusters() -> Iterator[dict[str, Cell]]:
    for name in catalog_clusters():
        cluster = load_cluster(name)
        device = cluster.device
        yield {
            "name": name,
            "num_gpus": cluster.num_gpus,
            "device": device.name,
            "memory_bytes": device.memory_bytes,
            "memory_bandwidth_bytes_per_s": device.memory_bandwidth_bytes_per_s,
            "bf16_flops_per_s": device.peak("bf16"),
            "links": ", ".join(
                f"{t.name} {format_si(t.bandwidth_bytes_per_s, 'B/s')} per {t.per}" for t in cluster.tiers
            ),
        }


def _workloads() -> Iterator[dict[str, Cell]]:
    for name in catalog_workloads():
        work = load_workload(name)
        load = work.tokens_in_flight or work.concurrency
        yield {
            "name": name,
            "kind": work.kind,
            "input_tokens": work.input_tokens,
            "output_tokens": work.output_tokens,
            "load": f"{work.request_rate_per_s:g} requests/s"
            if load is None
            else f"{load:,} {'tokens' if work.tokens_in_flight else 'requests'} in flight",
            "objective": ", ".join(
                f"{word} {seconds:g} s"
                for word, seconds in (("TTFT", work.slo.ttft_s), ("TPOT", work.slo.tpot_s))
                if seconds is not None
            ),
        }


def _claims() -> Iterator[dict[str, Cell]]:
    for name in catalog_claims():
        claims = load_claims(name)
        yield {
            "name": name,
            "num_claims": len(claims.claims),
            "model": claims.model,
            "cluster": claims.cluster,
            "workload": claims.workload,
            "strategy": claims.strategy,
        }


LISTS: dict[str, EntryList] = {
    "models": EntryList(
        "Models",
        ("name", "architecture", ">parameters", ">active", ">layers", ">experts", ">top-k", "weights"),
        _models,
    ),
    "clusters": EntryList(
        "Clusters (NAMExN: N of their GPUs, e.g. h200x32)",
        ("name", ">GPUs", "device", ">memory", ">memory bandwidth", ">BF16", "links, one way"),
        _clusters,
    ),
    "workloads": EntryList("Workloads", ("name", "kind", ">tokens in", ">tokens out", "load", "objective"), _workloads),
    "claims": EntryList("Claims", ("name", ">claims", "model", "cluster", "workload", "strategy"), _claims),
}
