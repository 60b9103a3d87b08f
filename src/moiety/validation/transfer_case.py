"""What the cost model says of measured transfers: collectives of a library, dispatch and combine of experts."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from moiety.calibration.catalog import calibration_for
from moiety.cluster.catalog import load_device
from moiety.cost.collective import collective_transfer
from moiety.cost.collective_library import library_times, protocols_of, wire_bytes
from moiety.cost.expert_exchange import exchange_transfer
from moiety.graph.op import Collective
from moiety.strategy.strategy import Strategy
from moiety.validation.published_names import device_name
from moiety.validation.serving_case import row_cluster, row_model
from moiety.validation.skipped import SkippedRow

if TYPE_CHECKING:
    from moiety.calibration.calibration import CollectiveProtocols, LibraryCollective
    from moiety.cluster.device import Device
    from moiety.validation.system_row import SystemRow

COLLECTIVES: dict[str, LibraryCollective] = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}
"""What rows call the collectives."""
_EXCHANGE = re.compile(r"(DeepSeek-)?V3 EP|DeepEP LL h7168 top8 256e")
_TOKENS = re.compile(r"(\d+) tok/GPU$")
_ROW_BITS = {"bf16": 16.0, "fp8": 8 + 32 / 128, "mxfp8": 8 + 8 / 32, "nvfp4": 4 + 8 / 16}
"""Bits of an element with its share of the scale of its block."""
_LARGEST_BYTES = 8.0 * 2**30
"""What nccl-tests go up to by default."""
_LOW_LATENCY_TOKENS = 1024
"""Tokens a GPU from which DeepEP is used by its normal kernels, which send a row once to each node."""


def row_device(row: SystemRow) -> Device:
    """Return the device of a row; raise SkippedRow where the catalogue has none."""
    name = device_name(row.hardware)
    if name is None:
        raise SkippedRow(f"hardware {row.hardware!r} is not in the catalogue")
    return load_device(name)


def predict_transfer(row: SystemRow) -> dict[str, float]:
    """Return the predicted metrics of a transfer; raise SkippedRow with the reason where there are none."""
    if row.model in COLLECTIVES:
        known, size, gpus, rate = library_case(row)
        return {"us": timed_us(row, known, size, gpus, rate)}
    if _EXCHANGE.match(row.model):
        return _exchange(row)
    if "busbw_GBps" in row.metrics:
        return {"busbw_GBps": 1e-9 * _most_bus_bandwidth(row)}
    raise SkippedRow(f"what kind of transfer {row.model!r} is, and of how many bytes, is not stated")


def _most_bus_bandwidth(row: SystemRow) -> float:
    """Return the bytes a second of each GPU in the largest collective inside a node, as nccl-tests count them."""
    kind = "all_reduce" if row.model.startswith("all_reduce") else "all_gather"
    device, gpus = row_device(row), row.n_gpus or 0
    cluster = row_cluster(device.name, gpus)
    if not 1 < gpus <= cluster.tiers[0].num_gpus:
        raise SkippedRow("which domains of links the GPUs lie in is not stated")
    calibration = calibration_for(device.architecture)
    found = collective_transfer(kind, _LARGEST_BYTES, tuple(range(gpus)), cluster, calibration)
    return wire_bytes(kind, _LARGEST_BYTES, gpus) / found.seconds


def tokens_per_gpu(row: SystemRow) -> int:
    """Return the tokens that each GPU has; raise SkippedRow where they are not stated."""
    tokens = _TOKENS.match(row.batch or "")
    if tokens is None:
        raise SkippedRow("tokens a GPU are not stated")
    return int(tokens[1])


def timed_us(row: SystemRow, known: CollectiveProtocols, size_bytes: float, gpus: int, rate: float) -> float:
    """Return microseconds of a collective as the row's benchmark times it: from the host, part of which it hides."""
    seconds = sum(library_times(known, COLLECTIVES[row.model], size_bytes, gpus, rate))
    return 1e6 * math.hypot(seconds, known.host_s.get(benchmark(row), 0.0))


def benchmark(row: SystemRow) -> str:
    """Return whose measurement a row is, on which machine."""
    return f"{row.source.partition(':')[0]} {row.hardware}"


def library_case(row: SystemRow) -> tuple[CollectiveProtocols, float, int, float]:
    """Return protocols, bytes of the full tensor, GPUs and bytes a second of a link."""
    size, gpus, device = row.metric("bytes"), row.n_gpus or 0, row_device(row)
    if size is None or gpus < 2:  # noqa: PLR2004 - one GPU has nobody to talk to
        raise SkippedRow("bytes or the number of GPUs is not stated")
    cluster = row_cluster(device.name, gpus)
    if gpus > cluster.tiers[0].num_gpus:
        raise SkippedRow("which domains of links the GPUs lie in is not stated")
    constants = calibration_for(device.architecture).collectives
    known = protocols_of(constants, COLLECTIVES[row.model], device.architecture)
    if known is None:
        raise SkippedRow(f"no protocols of {row.model} are known on {device.architecture}")
    return known, size, gpus, cluster.bandwidth_per_gpu(0)


def _exchange(row: SystemRow) -> dict[str, float]:
    """Return dispatch and combine in microseconds, and their rates as rows state them: own rank's rows count too.

    Kernels for few tokens send a row to every expert. Those for many send one to every node, which hands it on; their
    rows state the rate of the slowest links.
    """
    ep, count, device = row.degree("ep") or 0, tokens_per_gpu(row), row_device(row)
    if ep < 2:  # noqa: PLR2004 - one rank exchanges nothing
        raise SkippedRow("the number of ranks is not stated")
    moe, model = row_model("deepseek-v3").moe, row_model("deepseek-v3")
    assert moe is not None, "the catalogue's DeepSeek-V3 is a mixture"
    cluster, strategy = row_cluster(device.name, ep), Strategy(attn_dp=ep, ep=ep)
    calibration = calibration_for(device.architecture)
    crosses = ep > cluster.tiers[0].num_gpus
    many = count >= _LOW_LATENCY_TOKENS and crosses
    predicted: dict[str, float] = {}
    for kind, dtype in zip(("dispatch", "combine"), _formats(row), strict=True):
        row_bytes = model.hidden_size * _ROW_BITS[dtype] / 8
        work = Collective(kind, "stage", row_bytes, tokens=count, method="hierarchical" if many else "flat")
        found = exchange_transfer(work, moe, strategy, cluster, calibration, decode=not many)
        sent = found.tier_bytes[1] if many else moe.top_k * count * row_bytes
        counted = sent * (ep / (ep - cluster.tiers[0].num_gpus) if many else 1)
        predicted[f"{kind}_us"] = found.seconds * 1e6
        predicted[f"{kind}_GBps"] = counted / found.seconds / 1e9
    return predicted


def _formats(row: SystemRow) -> tuple[str, str]:
    """Return the formats of the rows of dispatch and combine."""
    stated = (row.precision or "").replace("/", " ").replace(",", " ").split()
    named = [each for each in stated if each in _ROW_BITS]
    if not named:
        raise SkippedRow("the format of the exchanged rows is not stated")
    return named[0], named[-1] if len(named) > 1 else "bf16"
