"""Replan: the plan of the ranks that are left, or that are there again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.errors import MoietyError
from moiety.placement.linear import place_linear
from moiety.placement.placement import Placement
from moiety.placement.recovery import EMPTY, recover
from moiety.plan import Plan, Pool
from moiety.runtime.fold import described, fold
from moiety.strategy.legality import broken_rules
from moiety.strategy.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from moiety.cluster.cluster import Cluster
    from moiety.placement.problem import SlotMap

Held = dict[int, tuple[int, ...]]
"""The experts that a rank holds, by layer of the model."""

_NAMED = 8
"""Experts that a message names at most."""


class CoverageLostError(MoietyError):
    """The ranks that are left cannot hold every expert, or none is left."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A plan for some ranks of a whole plan."""

    plan: Plan
    homes: tuple[int, ...]
    """The rank in the whole plan of each rank. Homes that are alive and not among them stand by."""


def layout_of(whole: Plan, alive: Mapping[int, Held], slot_map: SlotMap | None = None) -> Layout:
    """Return the plan for the homes that are `alive`, with the experts that each of them holds.

    Attention and experts stay divided as they are: homes go on in units of whole attention groups and whole experts,
    those of broken units stand by until they make a unit together. Where not one unit is whole, or the plan has
    pipeline stages or instances, the plan is folded onto all that are left.

    Experts are placed as in `slot_map` [layers, expert ranks of the whole plan, slots], which others have decided;
    without one by `placement.recovery`: they stay where they are as far as there is room. Raises CoverageLostError
    where nobody is left, or the experts do not fit on those who are.
    """
    if not alive:
        raise CoverageLostError("no rank is left")
    strategy = whole.pools[0].strategy
    for homes in _unions(strategy, alive):
        size = len(homes)
        shrunk = Strategy(tp=strategy.tp, attn_dp=size // strategy.tp, ep=size // strategy.etp, etp=strategy.etp)
        placement = _placement(whole, shrunk, homes, alive, slot_map)
        if not broken_rules(whole.model, shrunk, _redundant(placement)):
            return Layout(_plan(whole, shrunk, homes, placement), homes)
    return _folded(whole, alive)


def _unions(strategy: Strategy, alive: Collection[int]) -> list[tuple[int, ...]]:
    """Return the sets of whole units to try, the largest first.

    Homes of broken units make a unit together where each has another place in it, as their weights are for that.
    """
    if strategy.pp > 1 or strategy.instances > 1:
        return []
    width = max(strategy.tp, strategy.etp)
    ordered = sorted(alive)
    sizes = Counter(home // width for home in ordered)
    units = [tuple(range(unit * width, (unit + 1) * width)) for unit in sorted(sizes) if sizes[unit] == width]
    left = [home for home in ordered if sizes[home // width] < width]
    by_place = [[home for home in left if home % width == place] for place in range(width)]
    units = sorted([*units, *zip(*by_place, strict=False)])
    return [tuple(home for unit in units[:count] for home in unit) for count in range(len(units), 0, -1)]


def _placement(
    whole: Plan, strategy: Strategy, homes: Sequence[int], alive: Mapping[int, Held], slot_map: SlotMap | None
) -> Placement | None:
    """Return the experts' placement on whole units; None for a model without experts."""
    before = whole.pools[0].placement
    if before is None:
        return None
    count = before.num_logical_experts
    owners = [homes[rank * strategy.etp : (rank + 1) * strategy.etp] for rank in range(strategy.ep)]
    rows = None if slot_map is None else slot_map[:, [owner[0] // strategy.etp for owner in owners]]
    if rows is None or (rows == EMPTY).any():  # it is not for all of these
        held = [[_common(alive, owner, layer) for owner in owners] for layer in before.layers]
        _check_room(whole, strategy, max(before.slots_per_rank, -(-count // strategy.ep)), held)
        rows = _recovered(whole, held, count, before.slots_per_rank)
    return Placement(
        method="recovery",
        layers=before.layers,
        physical_to_logical_map=tuple(tuple(row) for row in rows.reshape(len(rows), -1).tolist()),
        num_gpus=strategy.gpus_per_stage,
        num_nodes=1,
        num_logical_experts=count,
        expert_tp=strategy.etp,
    )


def _recovered(whole: Plan, held: Sequence[Sequence[tuple[int, ...]]], count: int, width: int) -> SlotMap:
    """Return who has which experts afterwards, [layers, ranks, slots], of those that each holds, [layers][ranks]."""
    most = max(len(each) for row in held for each in row)
    before = np.full((len(held), len(held[0]), most), EMPTY, dtype=np.int64)
    for layer, row in enumerate(held):
        for rank, experts in enumerate(row):
            before[layer, rank, : len(experts)] = experts
    shares = np.array(whole.expert_shares or np.full((len(held), count), 1 / count), dtype=np.float64)
    taking = np.ones(len(held[0]), dtype=np.bool_)
    return recover(before, taking, shares, most_slots=count, slots=width).slot_map


def _common(alive: Mapping[int, Held], homes: Sequence[int], layer: int) -> tuple[int, ...]:
    """Return the experts of a layer that all of these homes hold (their parts of)."""
    first, *others = (alive[home].get(layer, ()) for home in homes)
    return tuple(expert for expert in first if all(expert in each for each in others))


def _check_room(
    whole: Plan, strategy: Strategy, slots_per_rank: int, held: Sequence[Sequence[tuple[int, ...]]]
) -> None:
    """Raise CoverageLostError where the plan's memory has no room for so much a rank, naming experts.

    `held` are the experts of each expert rank, [layers][ranks]. Weights grow as they are divided less; what else takes
    memory is counted as it was.
    """
    pool = whole.pools[0]
    assert pool.placement is not None, "experts have a placement"
    if pool.memory is None:
        return
    before, bytes_by_kind = pool.strategy, pool.memory.bytes_by_kind
    share = (slots_per_rank * before.etp * before.pp) / (pool.placement.slots_per_rank * strategy.etp * strategy.pp)
    experts = bytes_by_kind.get("expert_weights", 0) * (share - 1)
    dense = bytes_by_kind.get("dense_weights", 0) * (before.tp * before.pp / (strategy.tp * strategy.pp) - 1)
    needed = int(pool.memory.total_bytes + experts + dense)
    if needed <= pool.memory.capacity_bytes:
        return
    row = max(range(len(held)), key=lambda each: len(_homeless(held[each], pool.placement)))
    homeless = _homeless(held[row], pool.placement)
    named = ", ".join(str(each) for each in homeless[:_NAMED]) + (", ..." if len(homeless) > _NAMED else "")
    without = f"; in layer {pool.placement.layers[row]} without a copy: experts {named}" if homeless else ""
    raise CoverageLostError(
        f"the ranks that are left have no room for all experts: {described(strategy)} takes {needed:,} of "
        f"{pool.memory.capacity_bytes:,} bytes a rank{without}; add ranks, or plan with more of them"
    )


def _homeless(held: Sequence[tuple[int, ...]], placement: Placement | None) -> list[int]:
    assert placement is not None, "experts have a placement"
    covered = {expert for each in held for expert in each}
    return [expert for expert in range(placement.num_logical_experts) if expert not in covered]


def _folded(whole: Plan, alive: Mapping[int, Held]) -> Layout:
    """Return the whole plan folded onto all that are alive, its experts in order."""
    pool, homes = whole.pools[0], sorted(alive)
    if len(homes) == whole.num_gpus:
        return Layout(whole, tuple(homes))
    made = fold(
        pool.strategy,
        len(homes),
        whole.model,
        redundant_experts=whole.options.redundant_experts,
        gpus_per_node=whole.cluster.gpus_per_node,
    )
    before, placement = pool.placement, None
    if before is not None:
        placement = place_linear(
            layers=before.layers,
            num_experts=before.num_logical_experts,
            redundant_experts=made.redundant_experts,
            num_gpus=made.strategy.gpus_per_stage,
            num_nodes=1,
            expert_tp=made.strategy.etp,
        )
        alive_ranks = [[_common(alive, (home,), layer) for home in homes] for layer in before.layers]
        _check_room(whole, made.strategy, placement.slots_per_rank, alive_ranks)
    return Layout(_plan(whole, made.strategy, homes, placement), tuple(homes))


def _plan(whole: Plan, strategy: Strategy, homes: Sequence[int], placement: Placement | None) -> Plan:
    """Return the plan of these homes; what was computed for the whole plan is left out, as it no longer holds."""
    pool = whole.pools[0]
    options = whole.options.model_copy(update={"redundant_experts": _redundant(placement)})
    return Plan(
        name=f"{whole.name} on {described(strategy)}" if strategy != pool.strategy else whole.name,
        model=whole.model,
        cluster=_cluster(whole.cluster, homes),
        workload=whole.workload,
        engine=whole.engine,
        options=options,
        expert_shares=whole.expert_shares,
        pools=(Pool(role=pool.role, first_rank=0, strategy=strategy, schedule=pool.schedule, placement=placement),),
        provenance=whole.provenance,
        calibration=whole.calibration,
    )


def _redundant(placement: Placement | None) -> int:
    return 0 if placement is None else placement.num_slots - placement.num_logical_experts


def _cluster(cluster: Cluster, homes: Sequence[int]) -> Cluster:
    """Return the cluster as the homes see it, numbered anew.

    Innermost domains of links stay apart where each has as many homes left; where they are uneven, all are taken to
    reach each other over the outermost tier only: slower than true for some, and right for all.
    """
    if len(homes) == cluster.num_gpus:
        return cluster
    domain = cluster.tiers[0].num_gpus
    counts = Counter(home // domain for home in homes)
    inner, outer = cluster.tiers[0], cluster.tiers[-1]
    if len(counts) == 1:
        nodes, tiers = 1, (inner.model_copy(update={"num_gpus": len(homes)}),)
    elif len(set(counts.values())) == 1 and min(counts.values()) > 1:
        each = min(counts.values())
        nodes = len(counts)
        tiers = (
            inner.model_copy(update={"num_gpus": each}),
            outer.model_copy(update={"num_gpus": len(homes)}),
        )
    else:
        nodes, tiers = 1, (outer.model_copy(update={"num_gpus": len(homes)}),)
    return cluster.model_copy(
        update={"num_nodes": nodes, "gpus_per_node": len(homes) // nodes, "tiers": tiers, "beyond": ()}
    )


def held_by(plan: Plan, rank: int) -> Held:
    """Return the experts that a rank holds under a plan, in the layers of its stage."""
    pool = plan.pools[0]
    if pool.placement is None:
        return {}
    expert_rank = pool.strategy.coordinates(rank)["ep"]
    return {layer: pool.placement.experts_of_rank(row, expert_rank) for row, layer in enumerate(pool.placement.layers)}
