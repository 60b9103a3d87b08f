"""Which experts a GPU holds and where it stands on the mesh, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.report.lanes import number_ranges
from moiety.report.operator_text import part_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.plan import Pool
    from moiety.report.lanes import Lane

_SHOWN_AXES = ("tp", "attn_dp", "ep", "pp", "instance")


def gpu_lines(pool: Pool, stages: Sequence[Sequence[int]], lane: Lane) -> tuple[str, ...]:
    """Return a GPU's name, its coordinates on the axes that divide something, and its experts."""
    strategy = pool.strategy
    sizes = {
        "tp": strategy.tp,
        "attn_dp": strategy.attn_dp,
        "ep": strategy.ep,
        "pp": strategy.pp,
        "instance": strategy.instances,
    }
    held = lane_experts(pool, stages, lane)
    if lane.is_folded:
        lines = [f"GPUs {lane.first_rank}-{lane.last_rank}", f"{lane.num_gpus:,} GPUs, each"]
        lines.append(expert_line(held, ""))
        return tuple(line for line in lines if line)
    place = strategy.coordinates(lane.first_rank - pool.first_rank)
    coordinates = [f"{axis} {place[axis]}" for axis in _SHOWN_AXES if sizes[axis] > 1]
    # axes two by two, so that the line stays short
    lines = [f"GPU {lane.first_rank}", ", ".join(coordinates[:3]), ", ".join(coordinates[3:])]
    lines.append(expert_line(held, part_text(place["etp"], strategy.etp)))
    return tuple(line for line in lines if line)


def expert_line(experts: tuple[int, ...], part: str) -> str:
    """Return e.g. `Expert 5, half 1 of 2` or `Experts 0-7`; empty without experts."""
    if not experts:
        return ""
    text = f"{'Expert' if len(set(experts)) == 1 else 'Experts'} {number_ranges(experts, most=4)}"
    return f"{text}, {part}" if part else text


def lane_experts(pool: Pool, stages: Sequence[Sequence[int]], lane: Lane) -> tuple[int, ...]:
    """Return the logical experts of a lane's GPUs, in the first MoE layer of their stage; sorted, each once.

    `stages` lists the layers of each stage.
    """
    placement, strategy = pool.placement, pool.strategy
    if placement is None:
        return ()
    held: set[int] = set()
    for stage in lane.stages:
        row = _first_row(pool, stages[stage])
        if row is None:
            continue
        # more GPUs than a stage has hold all of it
        for rank in range(min(lane.num_gpus, strategy.gpus_per_stage)):
            local = (lane.first_rank - pool.first_rank + rank) % strategy.gpus_per_stage
            held.update(placement.experts_of_rank(row, local // strategy.etp))
    return tuple(sorted(held))


def _first_row(pool: Pool, layers: Sequence[int]) -> int | None:
    """Return the placement's row for the first of some layers that has experts."""
    assert pool.placement is not None
    return next((row for row, layer in enumerate(pool.placement.layers) if layer in layers), None)
