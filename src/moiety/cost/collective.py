"""Time of all-reduce, all-gather, reduce-scatter and sends over a cluster's tiers of links."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from moiety.cost.collective_library import library_times, protocols_of

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration, CollectiveConstants, LibraryCollective
    from moiety.cluster.cluster import Cluster
    from moiety.graph.op import CollectiveKind

_IN_LIBRARY: dict[CollectiveKind, LibraryCollective] = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
}


@dataclass(frozen=True, slots=True)
class Transfer:
    """Seconds a transfer takes, and for how many of them each tier of links is busy."""

    seconds: float
    tier_seconds: tuple[float, ...]
    tier_bytes: tuple[float, ...]
    """Bytes that each GPU sends on each tier."""
    pipelined: bool = False
    """Tiers work at the same time; otherwise one after the other."""


@lru_cache(maxsize=4096)
def fan_out(ranks: tuple[int, ...], tier_spans: tuple[int, ...]) -> tuple[int, ...]:
    """Return, per tier, how many parts of the tier below a group reaches in one of the tier's domains (the most).

    The product over the tiers is at least the size of the group.
    """
    parts: list[int] = []
    below = list(ranks)
    for span in tier_spans:
        domains: dict[int, set[int]] = {}
        for member in below:
            domains.setdefault(member // span, set()).add(member)
        parts.append(max(len(members) for members in domains.values()))
        below = sorted({min(members) for members in domains.values()})
    return tuple(parts)


def collective_transfer(
    kind: CollectiveKind, payload_bytes: float, ranks: tuple[int, ...], cluster: Cluster, calibration: Calibration
) -> Transfer:
    """Return the time of a ring collective over `ranks`, step by step over the tiers.

    On tier t with fan-out f the ring moves (f - 1) / f of what the tiers below have not yet divided, twice for an
    all-reduce: `a + 2 (f - 1) / f S / B` (Thakur et al. 2005; NCCL's ring). Inside a domain the fastest protocol of
    the library counts where it was measured; an engine's own kernel reduces small tensors sooner, and a switch that
    reduces large ones by a measured factor.
    """
    constants = calibration.collectives
    remaining = payload_bytes
    seconds, tier_seconds, tier_bytes = 0.0, [0.0] * len(cluster.tiers), [0.0] * len(cluster.tiers)
    if kind == "send":
        tier = cluster.tier_of_group(ranks[:2])
        reached = constants.network_efficiency if tier else constants.link_efficiency[0]
        wire_s = payload_bytes / (cluster.bandwidth_per_gpu(tier) * reached)
        tier_seconds[tier], tier_bytes[tier] = wire_s, payload_bytes
        return Transfer(_latency(cluster, tier, 2, constants) + wire_s, tuple(tier_seconds), tuple(tier_bytes))
    for tier, parts in enumerate(fan_out(ranks, tuple(each.num_gpus for each in cluster.tiers))):
        if parts == 1:
            continue
        latency, wire_s = _ring(kind, remaining, parts, tier, cluster, constants)
        if tier == 0 and kind in _IN_LIBRARY:
            latency, wire_s = _in_domain(kind, remaining, parts, cluster, constants, (latency, wire_s))
        tier_seconds[tier], tier_bytes[tier] = wire_s, _moved(kind, remaining, parts)
        seconds += latency + wire_s
        remaining /= parts
    return Transfer(seconds, tuple(tier_seconds), tuple(tier_bytes))


def _in_domain(
    kind: CollectiveKind,
    size_bytes: float,
    parts: int,
    cluster: Cluster,
    constants: CollectiveConstants,
    ring: tuple[float, float],
) -> tuple[float, float]:
    """Return (start-up, wire) seconds inside a domain of links: the library's where they are known."""
    asked = _IN_LIBRARY[kind]
    known = protocols_of(constants, asked, cluster.device.architecture)
    if known is None:
        return ring
    library = library_times(known, asked, size_bytes, parts, cluster.bandwidth_per_gpu(0))
    other_ways = kind == "all_reduce" and not constants.small_bytes < size_bytes <= constants.mid_bytes
    return min(library, ring, key=sum) if other_ways else library


def _ring(
    kind: CollectiveKind,
    size_bytes: float,
    parts: int,
    tier: int,
    cluster: Cluster,
    constants: CollectiveConstants,
) -> tuple[float, float]:
    """Return (start-up, wire) seconds on one tier by the line of the group's size."""
    moved = _moved(kind, size_bytes, parts)
    reduced_by_switch = kind == "all_reduce" and cluster.tiers[tier].in_network_reduction
    gain = constants.in_network_gain if reduced_by_switch else 1.0
    rate = cluster.bandwidth_per_gpu(tier) * _efficiency(parts, size_bytes, tier, constants, gain=gain)
    latency = _latency(cluster, tier, parts, constants)
    if kind == "all_reduce" and tier == 0:
        if size_bytes <= constants.small_bytes:
            return constants.small_latency_s, moved / rate
        latency += min(constants.second_start * latency, _one_shot_extra(moved, parts) / rate)
    return latency, moved / rate


def _one_shot_extra(moved: float, parts: int) -> float:
    """Return the bytes that each of `parts` sends more when it sends all it has to all others at once.

    That is `n - 1` times the tensor where reducing parts and gathering them moves `2 (n - 1) / n` of it; engines' own
    kernels do the one for small tensors and the other, with a second start, for larger ones.
    """
    return max(parts / 2 - 1, 0.0) * moved


def _moved(kind: CollectiveKind, size_bytes: float, parts: int) -> float:
    """Return the bytes that each member of a ring sends."""
    return (2.0 if kind == "all_reduce" else 1.0) * (parts - 1) / parts * size_bytes


def _latency(cluster: Cluster, tier: int, parts: int, constants: CollectiveConstants) -> float:
    """Return the start-up time: measured by group size inside a domain, plus the wire's for each step outside."""
    if tier == 0:
        return _interpolate(parts, constants.group_sizes, constants.latency_s)
    steps = math.ceil(math.log2(max(parts, 2)))
    return constants.network_latency_s + 2 * steps * cluster.tiers[tier].latency_s


def _efficiency(parts: int, size_bytes: float, tier: int, constants: CollectiveConstants, *, gain: float) -> float:
    """Return the share of the bandwidth that a ring reaches: by group size, more beyond middle sizes."""
    if tier:
        return constants.network_efficiency
    mid = _interpolate(parts, constants.group_sizes, constants.link_efficiency)
    if size_bytes <= constants.mid_bytes:
        return mid
    span = math.log(constants.large_bytes / constants.mid_bytes)
    along = min(math.log(size_bytes / constants.mid_bytes) / span, 1.0)
    large = constants.large_efficiency * gain
    return mid + along * (large - mid)


def _interpolate(number: int, known: tuple[int, ...], values: tuple[float, ...]) -> float:
    """Return the value at `number` on the line through the known points over log2, flat beyond the ends."""
    if number <= known[0]:
        return values[0]
    for low, high, first, second in zip(known, known[1:], values, values[1:], strict=False):
        if number <= high:
            return first + (second - first) * math.log2(number / low) / math.log2(high / low)
    return values[-1]
