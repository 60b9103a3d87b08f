"""What-if: GPUs, nodes or links fail, and the plan goes on with what is left."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.errors import InputError, nearest
from moiety.placement.load import coverage
from moiety.projection.load import LoadClass
from moiety.projection.project import evaluate
from moiety.projection.scenario import scenario_of
from moiety.projection.step import time_step
from moiety.records import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.cluster.cluster import Cluster
    from moiety.cost.calibration import Calibration
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
    """Share of (layer, expert) pairs that still have a copy before anything is reloaded."""
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
    """Return what `gpu:17`, `node:3`, `link:infiniband` (half its bandwidth) or `link:nvlink:0.25` (a quarter) break."""
    ranks: set[int] = set()
    shares: list[tuple[int, float]] = []
    names = [tier.name for tier in cluster.tiers]
    for text in texts:
        match = _FAILURE.match(text)
        if not match:
            raise InputError(
                "is not a failure", field="--fail", value=text, remedy="write gpu:17, node:3, link:infiniband or link:nvlink:0.25"
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
    (expert parallelism over attention groups, one stage): experts without a copy are loaded by the survivors with the
    least work, whose steps grow longer. Other instances stop with any of their GPUs.
    """
    failures = parse_failures(texts, plan.cluster)
    slower = plan.model_copy(update={"cluster": with_links(plan.cluster, failures.link_shares)})
    evaluated = evaluate(slower, calibration).plan
    before = plan.projection
    assert before is not None, "the plan is evaluated"
    pools = tuple(_degraded_pool(evaluated, pool, failures, calibration, plan) for pool in evaluated.pools)
    whole = evaluated.projection
    assert whole is not None, "the plan was evaluated"
    kept = min(
        each.throughput_tokens_per_s / pool.projection.throughput_tokens_per_s if pool.projection else 0.0
        for each, pool in zip(pools, evaluated.pools, strict=True)
    )
    rate = whole.throughput_tokens_per_s * min(kept, 1.0)
    return Degradation(
        failures=tuple(texts),
        alive_gpus=plan.num_gpus - sum(rank < plan.num_gpus for rank in failures.ranks),
        pools=pools,
        throughput_tokens_per_s=rate,
        throughput_share=rate / before.throughput_tokens_per_s,
    )


def _degraded_pool(plan: Plan, pool: Pool, failures: Failures, calibration: Calibration, healthy: Plan) -> DegradedPool:
    strategy = pool.strategy
    local = sorted(r - pool.first_rank for r in failures.ranks if 0 <= r - pool.first_rank < pool.num_gpus)
    by_instance: dict[int, list[int]] = {}
    for rank in local:
        by_instance.setdefault(rank // strategy.gpus_per_instance, []).append(rank % strategy.gpus_per_instance)
    assert pool.projection is not None, "the plan is evaluated"
    rate = pool.projection.throughput_tokens_per_s / strategy.instances
    goes_on = strategy.pp == 1 and strategy.ep > 1 and strategy.attn_dp > 1
    total, lost_instances, worst, reloaded, reload_bytes, fits = 0.0, 0, 1.0, 0, 0, True
    for instance in range(strategy.instances):
        lost = by_instance.get(instance, [])
        groups = {rank // strategy.tp for rank in lost}
        if not lost:
            total += rate
        elif not goes_on or len(groups) == strategy.attn_dp:
            lost_instances += 1
            if pool.placement is not None:
                worst = min(worst, coverage(pool.placement, frozenset(rank // strategy.etp for rank in lost)))
        else:
            after = _surviving_instance(plan, pool, groups, lost, calibration)
            total += rate * after.share
            worst, fits = min(worst, after.coverage), fits and after.fits
            reloaded, reload_bytes = max(reloaded, after.reloaded), max(reload_bytes, after.reload_bytes)
    original = next(p for p in healthy.pools if p.first_rank == pool.first_rank).projection
    assert original is not None, "the plan is evaluated"
    return DegradedPool(
        role=pool.role,
        lost_ranks=tuple(rank + pool.first_rank for rank in local),
        lost_instances=lost_instances,
        expert_coverage=worst,
        reloaded_experts=reloaded,
        reload_bytes_per_gpu=reload_bytes,
        fits=fits,
        throughput_tokens_per_s=total,
        throughput_share=total / original.throughput_tokens_per_s,
    )


@dataclass(frozen=True, slots=True)
class _Survivors:
    share: float
    coverage: float
    reloaded: int
    reload_bytes: int
    fits: bool


def _surviving_instance(
    plan: Plan, pool: Pool, groups: set[int], lost: list[int], calibration: Calibration
) -> _Survivors:
    """Return how an instance goes on without some attention groups: lost experts move to the least loaded survivors."""
    strategy, placement, moe = pool.strategy, pool.placement, plan.model.moe
    assert placement is not None, "expert parallelism has a placement"
    assert moe is not None, "expert parallelism has experts"
    dead = frozenset(rank // strategy.etp for group in groups for rank in range(group * strategy.tp, (group + 1) * strategy.tp))
    dead |= frozenset(rank // strategy.etp for rank in lost)
    alive = [rank for rank in range(strategy.ep) if rank not in dead]
    held = {rank: set(placement.experts_of_rank(0, rank)) for rank in alive}
    covered = set[int]().union(*held.values())
    homeless = sorted(set(range(moe.num_experts)) - covered)
    for expert in homeless:
        target = min(alive, key=lambda rank: (len(held[rank]), rank))
        held[target].add(expert)
    copies = {e: sum(e in experts for experts in held.values()) for e in range(moe.num_experts)}
    groups_left = (strategy.attn_dp - len(groups)) / strategy.attn_dp
    loads = {r: groups_left * strategy.ep / moe.num_experts * sum(1 / copies[e] for e in held[r]) for r in alive}
    counted: dict[float, int] = {}
    for load in loads.values():
        counted[round(load, 4)] = counted.get(round(load, 4), 0) + 1
    is_moe = [block.feed_forward.kind == "moe" for block in plan.model.layers]
    classes = [
        LoadClass(f"load {load:g}", count, tuple(load if moe_layer else 1.0 for moe_layer in is_moe))
        for load, count in sorted(counted.items(), reverse=True)
    ]
    scenario = scenario_of(plan, calibration)

    def step_s(classes: list[LoadClass] | None) -> float:
        return time_step(
            scenario,
            strategy,
            pool.schedule,
            plan.options,
            placement,
            training=pool.role == "training",
            first_rank=pool.first_rank,
            classes=classes,
        ).step_s

    extra = max(len(held[rank]) for rank in alive) - placement.slots_per_rank
    memory = pool.memory
    assert memory is not None, "the plan is evaluated"
    per_slot = memory.bytes_by_kind["expert_weights"] // placement.slots_per_rank
    return _Survivors(
        share=groups_left * step_s(None) / step_s(classes),
        coverage=coverage(placement, dead),
        reloaded=len(homeless),
        reload_bytes=max(extra, 0) * per_slot,
        fits=memory.total_bytes + max(extra, 0) * per_slot <= memory.capacity_bytes,
    )
