"""What-if: GPUs, nodes or links fail, and the plan goes on with what is left."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.errors import InputError, nearest
from moiety.projection.project import evaluate
from moiety.records import Record
from moiety.search.survivors import instance_coverage, surviving_instance
from moiety.strategy.survivors import goes_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.calibration.calibration import Calibration
    from moiety.cluster.cluster import Cluster
    from moiety.plan import Plan, Pool

_FAILURE = re.compile(r"^(gpu|node):([0-9]{1,7})$|^link:([a-z0-9_-]+)(?::([0-9.]+))?$")


@dataclass(frozen=True, slots=True)
class Failures:
    """Ranks that are gone, and the share of its bandwidth that each tier of links keeps."""

    ranks: frozenset[int]
    link_shares: tuple[tuple[int, float], ...]


class DegradedPool(Record):
    """What is left of a pool."""

    role: str
    lost_ranks: tuple[int, ...]
    lost_instances: int
    """Instances that cannot go on: tensor or pipeline parallelism without one of its GPUs."""
    expert_coverage: float
    """Share of (layer, expert) pairs that still have a copy in the instance hit worst, before anything is reloaded."""
    reloaded_experts: int
    """Experts per layer that survivors load from the checkpoint."""
    reload_bytes_per_gpu: int
    fits: bool
    throughput_tokens_per_s: float
    throughput_share: float
    """Of the whole plan's throughput before."""


class Degradation(Record):
    """A plan after failures, not yet planned anew."""

    failures: tuple[str, ...]
    alive_gpus: int
    pools: tuple[DegradedPool, ...]
    throughput_tokens_per_s: float
    throughput_share: float


def parse_failures(texts: Sequence[str], cluster: Cluster) -> Failures:
    """Return what `gpu:17`, `node:3`, `link:infiniband` (half its bandwidth) or `link:nvlink:0.25` (a quarter) break.

    Raises InputError for anything else, and for GPUs, nodes and links that the cluster does not have.
    """
    ranks: set[int] = set()
    shares: list[tuple[int, float]] = []
    names = [tier.name for tier in cluster.tiers]
    for text in texts:
        match = _FAILURE.match(text)
        if not match:
            raise InputError(
                "is not a failure",
                field="--fail",
                value=text,
                remedy="write gpu:17, node:3, link:infiniband or link:nvlink:0.25",
            )
        if match[1]:
            number, most = int(match[2]), cluster.num_gpus if match[1] == "gpu" else cluster.num_nodes
            if number >= most:
                raise InputError(f"there are {most} of them, counted from 0", field="--fail", value=text)
            width = 1 if match[1] == "gpu" else cluster.gpus_per_node
            ranks.update(range(number * width, (number + 1) * width))
            continue
        if match[3] not in names:
            raise InputError("no such tier of links", field="--fail", value=text, remedy=nearest(match[3], names))
        share = _share(match[4], text)
        shares.append((names.index(match[3]), share))
    return Failures(frozenset(ranks), tuple(shares))


def _share(text: str | None, whole: str) -> float:
    try:
        share = 0.5 if text is None else float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise InputError("a link keeps a share of its bandwidth above 0, at most 1", field="--fail", value=whole)
    return share


def with_links(cluster: Cluster, shares: Sequence[tuple[int, float]]) -> Cluster:
    """Return the cluster with some tiers at a share of their bandwidth."""
    tiers = list(cluster.tiers)
    for tier, share in shares:
        slower = tiers[tier].bandwidth_bytes_per_s * share
        tiers[tier] = tiers[tier].model_copy(update={"bandwidth_bytes_per_s": slower})
    return cluster.model_copy(update={"tiers": tuple(tiers)})


def degrade(plan: Plan, texts: Sequence[str], calibration: Calibration) -> Degradation:
    """Return what an evaluated plan does after failures, before it is planned anew.

    An attention group without one of its GPUs stops; the other groups of its instance go on where experts are spread
    (expert parallelism over attention groups, one stage): by the rules of `placement/recovery.py`, which the control
    plane follows too, survivors load the experts without a copy and fill what slots are left with copies, and their
    steps grow longer. Other instances stop with any of their GPUs.
    """
    failures = parse_failures(texts, plan.cluster)
    before = plan.projection
    assert before is not None, "the plan is evaluated"
    slower = plan.model_copy(update={"cluster": with_links(plan.cluster, failures.link_shares)})
    evaluated = evaluate(slower, calibration).plan
    whole = evaluated.projection
    assert whole is not None, "the plan was evaluated"
    pools: list[DegradedPool] = []
    kept = 1.0
    for pool, healthy in zip(evaluated.pools, plan.pools, strict=True):
        after = _degraded_pool(evaluated, pool, failures, calibration)
        kept = min(kept, after.throughput_tokens_per_s / _rate(pool))
        pools.append(after.model_copy(update={"throughput_share": after.throughput_tokens_per_s / _rate(healthy)}))
    rate = whole.throughput_tokens_per_s * kept
    return Degradation(
        failures=tuple(texts),
        alive_gpus=plan.num_gpus - sum(rank < plan.num_gpus for rank in failures.ranks),
        pools=tuple(pools),
        throughput_tokens_per_s=rate,
        throughput_share=rate / before.throughput_tokens_per_s,
    )


def _rate(pool: Pool) -> float:
    assert pool.projection is not None, "the plan is evaluated"
    return pool.projection.throughput_tokens_per_s


def _degraded_pool(plan: Plan, pool: Pool, failures: Failures, calibration: Calibration) -> DegradedPool:
    """Return what is left of a pool, its share of the throughput relative to `plan`, whose links are slow already."""
    strategy = pool.strategy
    local = sorted(r - pool.first_rank for r in failures.ranks if 0 <= r - pool.first_rank < pool.num_gpus)
    by_instance: dict[int, list[int]] = {}
    for rank in local:
        by_instance.setdefault(rank // strategy.gpus_per_instance, []).append(rank % strategy.gpus_per_instance)
    share, lost_instances = float(strategy.instances - len(by_instance)), 0
    reloaded, reload_bytes, fits, worst = 0, 0, True, 1.0
    for lost in by_instance.values():
        worst = min(worst, instance_coverage(plan.model, pool, lost))
        if goes_on(strategy, lost):
            after = surviving_instance(plan, pool, lost, calibration)
            share += after.share
            fits = fits and after.fits
            reloaded, reload_bytes = max(reloaded, after.reloaded), max(reload_bytes, after.reload_bytes)
        else:
            lost_instances += 1
    rate = _rate(pool) * share / strategy.instances
    return DegradedPool(
        role=pool.role,
        lost_ranks=tuple(rank + pool.first_rank for rank in local),
        lost_instances=lost_instances,
        expert_coverage=worst,
        reloaded_experts=reloaded,
        reload_bytes_per_gpu=reload_bytes,
        fits=fits,
        throughput_tokens_per_s=rate,
        throughput_share=share / strategy.instances,
    )
