"""What-if: GPUs, nodes, links or rails fail, or a GPU is slow, and the plan goes on with what is left."""

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

_FAILURE = re.compile(
    r"^(?P<part>gpu|node):(?P<number>[0-9]{1,7})$|^slow:(?P<slow>[0-9]{1,7})(?::(?P<factor>[0-9.]+))?$"
    r"|^link:(?P<link>[a-z0-9_-]+)(?::(?P<share>[0-9.]+))?$|^rail:(?P<rail>[a-z0-9_-]+)$"
)
_SLOWEST = 100.0


@dataclass(frozen=True, slots=True)
class Failures:
    """What broke: ranks that are gone, links that carry less, ranks that are slow."""

    ranks: frozenset[int]
    link_shares: tuple[tuple[int, float], ...]
    """(tier, share of its bandwidth that it keeps)."""
    slow: tuple[tuple[int, float], ...] = ()
    """(rank, how many times as long everything takes it)."""

    @property
    def avoided(self) -> frozenset[int]:
        """Ranks that a new plan does without: the lost and the slow."""
        return self.ranks | {rank for rank, _ in self.slow}


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
    """That the GPU reads which reads most."""
    fits: bool
    """Whether survivors have room for the slots that they take on."""
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
    """Return what `gpu:17`, `node:3`, `slow:17:1.5`, `link:infiniband`, `link:nvlink:0.25` or `rail:infiniband` break.

    A slow GPU takes twice as long where no factor is given; a link keeps half of its bandwidth where no share is. A
    rail is one of the cards that every GPU of a node has: without it the others of the node carry its traffic too.
    Raises InputError for anything else, and for GPUs, nodes and links that the cluster does not have.
    """
    ranks: set[int] = set()
    shares: list[tuple[int, float]] = []
    slow: list[tuple[int, float]] = []
    for text in texts:
        match = _FAILURE.fullmatch(text)
        if not match:
            raise InputError(
                "is not a failure",
                field="--fail",
                value=text,
                remedy="write gpu:17, node:3, slow:17:1.5, link:infiniband, link:nvlink:0.25 or rail:infiniband",
            )
        if match["part"]:
            width = 1 if match["part"] == "gpu" else cluster.gpus_per_node
            number = _counted(match["number"], cluster.num_gpus // width, text)
            ranks.update(range(number * width, (number + 1) * width))
        elif match["slow"]:
            slow.append((_counted(match["slow"], cluster.num_gpus, text), _factor(match["factor"], text)))
        elif match["link"]:
            shares.append((_tier(match["link"], cluster, text), _share(match["share"], text)))
        else:
            tier = _tier(match["rail"], cluster, text)
            rails = cluster.gpus_per_node
            if tier == 0 or cluster.tiers[tier].per != "gpu" or rails == 1:
                rule = "only links between nodes with a card for every GPU, and several GPUs a node, have rails to lose"
                raise InputError(rule, field="--fail", value=text, remedy="write link:NAME:SHARE")
            shares.append((tier, 1 - 1 / rails))
    return Failures(frozenset(ranks), tuple(shares), tuple(slow))


def _counted(digits: str, most: int, text: str) -> int:
    number = int(digits)
    if number >= most:
        raise InputError(f"there are {most} of them, counted from 0", field="--fail", value=text)
    return number


def _tier(name: str, cluster: Cluster, text: str) -> int:
    names = [tier.name for tier in cluster.tiers]
    if name not in names:
        raise InputError("no such tier of links", field="--fail", value=text, remedy=nearest(name, names))
    return names.index(name)


def _factor(text: str | None, whole: str) -> float:
    try:
        factor = 2.0 if text is None else float(text)
    except ValueError:
        factor = 0.0
    if not 1 <= factor <= _SLOWEST:
        rule = f"a slow GPU takes from 1 to {_SLOWEST:g} times as long"
        raise InputError(rule, field="--fail", value=whole, remedy="e.g. slow:17:1.5")
    return factor


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


def with_slow_device(cluster: Cluster, factor: float) -> Cluster:
    """Return the cluster with devices that take `factor` times as long for everything they compute or move."""
    device = cluster.device
    peaks = {dtype: peak / factor for dtype, peak in device.peak_flops_per_s.items()}
    rate = device.memory_bandwidth_bytes_per_s / factor
    slower = device.model_copy(update={"peak_flops_per_s": peaks, "memory_bandwidth_bytes_per_s": rate})
    return cluster.model_copy(update={"device": slower})


def degrade(plan: Plan, texts: Sequence[str], calibration: Calibration) -> Degradation:
    """Return what an evaluated plan does after failures, before it is planned anew.

    An attention group without one of its GPUs stops; the other groups of its instance go on where experts are spread
    (expert parallelism over attention groups, one stage): by the rules of `placement/recovery.py`, which the control
    plane follows too, survivors load the experts without a copy and fill what slots are left with copies, and their
    steps grow longer. Other instances stop with any of their GPUs. An instance with a slow GPU waits for it in every
    layer, so it is as if all of its GPUs were as slow.
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
    paces = _paces(plan, pool, failures, calibration)
    share = strategy.instances - len(by_instance) - sum(1 - p for i, p in paces.items() if i not in by_instance)
    lost_instances = 0
    reloaded, reload_bytes, fits, worst = 0, 0, True, 1.0
    for instance, lost in by_instance.items():
        worst = min(worst, instance_coverage(plan.model, pool, lost, plan.options.virtual_stages))
        if goes_on(strategy, lost):
            after = surviving_instance(plan, pool, lost, calibration)
            share += after.share * paces.get(instance, 1.0)
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


def _paces(plan: Plan, pool: Pool, failures: Failures, calibration: Calibration) -> dict[int, float]:
    """Return the share of its throughput that each instance with slow GPUs keeps, at the pace of the slowest."""
    slowest: dict[int, float] = {}
    for rank, factor in failures.slow:
        local = rank - pool.first_rank
        if rank not in failures.ranks and 0 <= local < pool.num_gpus:
            instance = local // pool.strategy.gpus_per_instance
            slowest[instance] = max(slowest.get(instance, 1.0), factor)
    index = plan.pools.index(pool)
    kept: dict[float, float] = {}
    for factor in set(slowest.values()):
        slower = plan.model_copy(update={"cluster": with_slow_device(plan.cluster, factor)})
        kept[factor] = min(_rate(evaluate(slower, calibration).plan.pools[index]) / _rate(pool), 1.0)
    return {instance: kept[factor] for instance, factor in slowest.items()}
