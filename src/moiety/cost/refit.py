"""Constants refitted to what ops took on real ranks: the loop from prediction to measurement, closed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from moiety.calibration.calibration import (
    Calibration,
    CollectiveConstants,
    EngineConstants,
    ExchangeConstants,
    Roofline,
    RooflineKind,
)
from moiety.cost.collective import collective_transfer
from moiety.cost.expert_exchange import exchange_transfer
from moiety.cost.price import distinct_groups
from moiety.cost.roofline import compute_seconds, roofline_kind
from moiety.graph.op import Collective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.calibration.calibration import Engine
    from moiety.cluster.cluster import Cluster
    from moiety.graph.op import Op
    from moiety.model.feed_forward import MoeFeedForward
    from moiety.strategy.strategy import Strategy

_LEAST_SHARE, _MOST_SHARE = 1e-6, 16.0


@dataclass(frozen=True, slots=True)
class Observation:
    """What an op took, on the mean rank and in the mean layer of its kind."""

    op: Op
    seconds: float
    decode: bool
    """Whether the step had no prompt tokens."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where observations were made: the strategy's groups on the cluster's links."""

    model_moe: MoeFeedForward | None
    strategy: Strategy
    cluster: Cluster
    first_rank: int = 0
    overlap_slowdown: float = 1.0
    """How much longer computation takes beside the other micro-batch's transfers than without them."""


def refitted(  # noqa: PLR0913 - what was observed, where, and what it is called
    calibration: Calibration,
    observations: Sequence[Observation],
    bench: Bench,
    *,
    name: str,
    source: str,
    engine: Engine,
    step_overhead_s: float,
    reserve_bytes: int,
) -> Calibration:
    """Return `calibration` with every constant that the observations bear on replaced by what fits them.

    Kernels follow `t = overhead + FLOPs / (e x peak) + bytes / (b x bandwidth)`, transfers `t = latency + bytes / r`;
    both by least squares of the relative errors with no negative term. What was not observed stays as it was.
    """
    roofline = dict(calibration.roofline)
    by_kind: dict[RooflineKind, list[Observation]] = {}
    for each in observations:
        if not isinstance(each.op.work, Collective):
            by_kind.setdefault(roofline_kind(each.op.work), []).append(each)
    for kind, found in by_kind.items():
        roofline[kind] = _roofline(calibration, kind, found, bench.cluster, source)
    overhead = EngineConstants(
        step_overhead_s=step_overhead_s,
        request_overhead_s=calibration.engines[engine].request_overhead_s,
        reserve_bytes=reserve_bytes,
        basis="measured",
        source=source,
    )
    engines: dict[Engine, EngineConstants] = {**calibration.engines, engine: overhead}
    return Calibration(
        name=name,
        architectures=(bench.cluster.device.architecture,),
        roofline=roofline,
        collectives=_collectives(calibration, observations, bench, source),
        expert_exchange=_exchange(calibration, observations, bench, source),
        engines=engines,
        power=calibration.power,
    )


def non_negative_fit(terms: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[float, ...]:
    """Return the weights, none negative, whose sums of `terms` [observations][terms] are nearest to `seconds`.

    Nearest by the squares of the relative errors. All subsets of the few terms are tried, so the minimum is exact.
    """
    target = np.asarray(seconds, dtype=np.float64)
    matrix = np.asarray(terms, dtype=np.float64) / target[:, None]
    ones = np.ones_like(target)
    count = matrix.shape[1]
    best, best_error = np.zeros(count), float(count * len(seconds))
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            part = matrix[:, chosen]
            weights = np.linalg.lstsq(part, ones, rcond=None)[0]
            error = float(np.square(part @ weights - ones).sum())
            if (weights >= 0).all() and error < best_error - 1e-15:
                best, best_error = np.zeros(count), error
                best[list(chosen)] = weights
    return tuple(best.tolist())


def _roofline(
    calibration: Calibration, kind: RooflineKind, found: Sequence[Observation], cluster: Cluster, source: str
) -> Roofline:
    """Return the line of one kind of kernel that fits its observations."""
    plain = calibration.roofline[kind].model_copy(
        update={
            "overhead_s": 0.0,
            "exponent": 1.0,
            "row_block": 1,
            "compute_efficiency": 1.0,
            "memory_efficiency": 1.0,
            "tiles": None,
            "query_tile": None,
        }
    )
    device = cluster.device
    one = calibration.model_copy(update={"roofline": {**calibration.roofline, kind: plain}})
    free = device.model_copy(update={"memory_bandwidth_bytes_per_s": math.inf})
    terms: list[tuple[float, float, float]] = []
    for each in found:
        assert not isinstance(each.op.work, Collective), "transfers have no roofline"
        compute = compute_seconds(each.op.work, free, one)
        terms.append((1.0, compute, compute_seconds(each.op.work, device, one) - compute))
    overhead, compute, memory = non_negative_fit(terms, [each.seconds for each in found])
    sizes = sorted(each.op.flops for each in found)
    return plain.model_copy(
        update={
            "overhead_s": overhead,
            "compute_efficiency": _share(compute),
            "memory_efficiency": _share(memory),
            "basis": "measured",
            "source": source,
            "range": f"{len(found)} ops of {sizes[0]:.3g} to {sizes[-1]:.3g} FLOP",
        }
    )


def _share(seconds_per_second: float) -> float:
    """Return the share of the peak that makes what takes one second at the peak take that many."""
    return min(max(1 / seconds_per_second, _LEAST_SHARE), _MOST_SHARE) if seconds_per_second else _MOST_SHARE


def _collectives(
    calibration: Calibration, observations: Sequence[Observation], bench: Bench, source: str
) -> CollectiveConstants:
    """Return latency and rate of the ring collectives that were observed."""
    constants = calibration.collectives
    perfect = constants.model_copy(
        update={
            "latency_s": (0.0,) * len(constants.group_sizes),
            "link_efficiency": (1.0,) * len(constants.group_sizes),
            "large_efficiency": 1.0,
            "protocols": (),
            "small_latency_s": 0.0,
            "network_latency_s": 0.0,
            "network_efficiency": 1.0,
        }
    )
    ideal = calibration.model_copy(update={"collectives": perfect})
    terms: list[tuple[float, float]] = []
    seconds: list[float] = []
    crosses = False
    spans = tuple(tier.num_gpus for tier in bench.cluster.tiers)
    for each in observations:
        work = each.op.work
        if not isinstance(work, Collective) or work.kind in {"dispatch", "combine"} or work.bulk:
            continue
        groups = distinct_groups(bench.strategy, work.axis, bench.first_rank, spans)
        transfers = [
            collective_transfer(work.kind, work.payload_bytes, group, bench.cluster, ideal) for group in groups
        ]
        slowest = max(transfers, key=lambda transfer: sum(transfer.tier_seconds))
        crosses = crosses or any(slowest.tier_seconds[1:])
        terms.append((1.0, sum(slowest.tier_seconds)))
        seconds.append(each.seconds)
    if not seconds:
        return constants
    latency, rate = non_negative_fit(terms, seconds)
    share = min(_share(rate), 1.0)
    count = len(constants.group_sizes)
    return constants.model_copy(
        update={
            "latency_s": (latency,) * count,
            "link_efficiency": (share,) * count,
            "large_efficiency": share,
            "small_latency_s": latency,
            "small_bytes": 0,
            "in_network_gain": 1.0,
            "protocols": (),
            "network_latency_s": latency if crosses else constants.network_latency_s,
            "network_efficiency": share if crosses else constants.network_efficiency,
            "basis": "measured",
            "source": source,
            "range": f"groups of {bench.strategy.tp} ranks",
        }
    )


def _exchange(
    calibration: Calibration, observations: Sequence[Observation], bench: Bench, source: str
) -> ExchangeConstants:
    """Return start-up times and rate of dispatch and combine as they were observed."""
    constants = calibration.expert_exchange
    if bench.model_moe is None:
        return constants
    perfect = constants.model_copy(
        update={"domain_efficiency": 1.0, "network_efficiency": 1.0, "decode_network_efficiency": 1.0}
    )
    ideal = calibration.model_copy(update={"expert_exchange": perfect})
    terms: list[tuple[float, float, float]] = []
    seconds: list[float] = []
    crosses = False
    for each in observations:
        work = each.op.work
        if not isinstance(work, Collective) or work.kind not in {"dispatch", "combine"}:
            continue
        transfer = exchange_transfer(
            work, bench.model_moe, bench.strategy, bench.cluster, ideal, decode=each.decode, first_rank=bench.first_rank
        )
        crosses = crosses or any(transfer.tier_bytes[1:])
        is_dispatch = work.kind == "dispatch"
        terms.append((float(is_dispatch), float(not is_dispatch), max(transfer.tier_seconds)))
        seconds.append(each.seconds)
    if not seconds:
        return constants
    dispatch, combine, rate = non_negative_fit(terms, seconds)
    share = min(_share(rate), 1.0)
    taken = bench.cluster.device.num_sms * (1 - 1 / bench.overlap_slowdown)
    return constants.model_copy(
        update={
            "dispatch_latency_s": dispatch,
            "combine_latency_s": combine,
            "combine_latency_wide_s": combine,
            "domain_dispatch_latency_s": dispatch,
            "domain_combine_latency_s": combine,
            "domain_efficiency": share,
            "network_efficiency": share,
            "decode_network_efficiency": share,
            "communication_sms": taken,
            "decode_communication_sms": taken,
            "basis": "measured",
            "source": source,
            "range": f"EP {bench.strategy.ep}, {'between' if crosses else 'inside'} domains",
        }
    )
