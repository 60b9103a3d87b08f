"""Where the experts live, node by node, and how the modules of a plan fall on its GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cli.table import table
from moiety.placement.load import mean_balance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from moiety.placement.placement import Placement
    from moiety.plan import Plan, Pool

_MOST_NODES = 16


def division_lines(plan: Plan) -> Iterator[str]:
    """Yield for each pool how its expert modules are divided: slots x expert partitions over the GPUs of a stage."""
    for pool in plan.pools:
        own, placement = pool.strategy, pool.placement
        where = f"{pool.role}: " if len(plan.pools) > 1 else ""
        if placement is None:
            yield f"{where}no experts; {own.tp} partitions of every layer, {own.pp} stages, {own.instances} instances"
            continue
        copies = placement.num_slots - placement.num_logical_experts
        slots = f"{placement.num_logical_experts} experts" + (f" + {copies} copies" if copies else "")
        modules = placement.num_slots * own.etp
        each = modules // own.gpus_per_stage
        matched = "one for one" if each == 1 else f"{each} on each"
        whole = f"{where}module division of a layer: {slots} x {own.etp} expert partitions = {modules} modules on "
        yield whole + f"{own.gpus_per_stage} GPUs, {matched}" + _repeated(pool)


def _repeated(pool: Pool) -> str:
    own = pool.strategy
    times = [f"{own.pp} stages"] if own.pp > 1 else []
    times += [f"{own.instances} instances"] if own.instances > 1 else []
    return f"; {' x '.join(times)}, {pool.num_gpus} GPUs in all" if times else ""


def routing_section(plan: Plan) -> Iterator[RenderableType]:
    """Yield what measured routing makes of the placement, beside the other methods; nothing where none was given."""
    if plan.expert_shares is None:
        return
    rates = {each.name: each.projection.throughput_tokens_per_s for each in plan.comparison}
    for pool in plan.pools:
        placement = pool.placement
        if placement is None or pool.strategy.ep == 1:
            continue
        redundancy = f"{placement.num_slots / placement.num_logical_experts - 1:.1%}"
        columns = [(placement.method, mean_balance(placement, plan.expert_shares), placement.traffic)]
        columns += [(m.method, m.balance, m.traffic) for m in pool.measured if m.method != placement.method]
        rows: list[tuple[str, ...]] = []
        for method, balance, traffic in columns:
            rate = rates.get("enhanced" if method == placement.method else f"{method}-placement")
            reached = (f"{traffic.remote_domains:.3f}", f"{traffic.reached_ranks:.3f}") if traffic else ("", "")
            said = f"{rate:,.0f}" if rate is not None else ""
            rows.append((method, f"{balance:.3f}", *reached, redundancy, said))
        notes = ["balance: mean over max of the GPUs' expert work; a node: a domain of the innermost links"]
        if placement.traffic is None:
            notes.append("no trace of tokens: traffic is that of uniform routing")
        else:
            notes.append(f"measured on {placement.traffic.num_tokens:,} tokens; near copies serve first")
        title = "Placement by measured routing" + (f", {pool.role} pool" if len(plan.pools) > 1 else "")
        heads = ("method", ">balance", ">other nodes a token", ">GPUs a token", ">redundancy", ">tokens/s")
        yield table(title, heads, rows, notes=notes)


def placement_section(plan: Plan) -> Iterator[RenderableType]:
    """Yield each pool's placement matrix: the experts of every node of the cluster."""
    for pool in plan.pools:
        if pool.placement is not None:
            yield _matrix(plan, pool, pool.placement)


def _matrix(plan: Plan, pool: Pool, placement: Placement) -> RenderableType:
    own, node = pool.strategy, plan.cluster.gpus_per_node
    last = pool.first_rank + pool.num_gpus
    rows: list[tuple[str, str, str, str]] = []
    first_node, end_node = pool.first_rank // node, -(-last // node)
    for number in range(first_node, min(end_node, first_node + _MOST_NODES)):
        ranks = range(max(number * node, pool.first_rank), min((number + 1) * node, last))
        local = [own.coordinates(rank - pool.first_rank) for rank in ranks]
        experts = sorted({e for at in local for e in placement.experts_of_rank(0, at["ep"])})
        places = {(at["instance"], at["pp"]) for at in local}
        where = ", ".join(_place(pool, instance, stage) for instance, stage in sorted(places)[:3])
        where += f", ... ({len(places)} in all)" if len(places) > 3 else ""  # noqa: PLR2004 - as above
        rows.append((str(number), f"{ranks.start}-{ranks.stop - 1}", runs(experts), where))
    rows += [("...", "", f"{end_node - first_node - _MOST_NODES} more nodes", "")] * (
        end_node - first_node > _MOST_NODES
    )
    alike = len(set(placement.physical_to_logical_map)) == 1
    which = "every MoE layer" if alike else f"layer {placement.layers[0]}, others differ"
    title = f"Expert placement ({placement.method}, {which})"
    title += f", {pool.role} pool" if len(plan.pools) > 1 else ""
    return table(title, (">node", ">GPUs", "experts", "of"), rows)


def _place(pool: Pool, instance: int, stage: int) -> str:
    own = pool.strategy
    parts = [f"instance {instance}"] if own.instances > 1 else []
    parts += [f"stage {stage}"] if own.pp > 1 else []
    return " ".join(parts) or "the instance"


def runs(numbers: Sequence[int]) -> str:
    """Return ascending numbers as runs: `0-3, 8, 10-11`."""
    parts: list[str] = []
    start = previous = None
    for number in [*numbers, None]:
        if previous is not None and number == previous + 1:
            previous = number
            continue
        if start is not None:
            parts.append(str(start) if start == previous else f"{start}-{previous}")
        start = previous = number
    return ", ".join(parts)
