"""Which bands of a pool pass activations on to each other from stage to stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.report.lanes import lane_of

if TYPE_CHECKING:
    from moiety.plan import Pool
    from moiety.report.lanes import Lane


def sends(pool: Pool, lane: Lane) -> bool:
    """Return whether a stage of the lane has one after it."""
    return any(stage < pool.strategy.pp - 1 for stage in lane.stages)


def takes(lane: Lane) -> bool:
    """Return whether a stage of the lane has one before it."""
    return any(stage > 0 for stage in lane.stages)


def boundary_pairs(pool: Pool, lanes: tuple[Lane, ...]) -> tuple[tuple[int, int], ...]:
    """Return (band, band of the next stage) for all lanes whose partner in the next stage is in another band."""
    strategy = pool.strategy
    pairs: dict[tuple[int, int], None] = {}
    for number, lane in enumerate(lanes):
        instance = (lane.first_rank - pool.first_rank) // strategy.gpus_per_instance
        end = pool.first_rank + (instance + 1) * strategy.gpus_per_instance - 1
        low = lane.first_rank + strategy.gpus_per_stage
        high = min(lane.last_rank + strategy.gpus_per_stage, end)
        if low > high:
            continue
        for partner in range(lane_of(lanes, low), lane_of(lanes, high) + 1):
            if partner != number:
                pairs[lane.band, lanes[partner].band] = None
    return tuple(sorted(pairs))
