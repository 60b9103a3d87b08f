"""Spans: where in the lanes the groups of a mesh axis lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.report.lanes import lane_of, number_ranges

if TYPE_CHECKING:
    from moiety.cluster.cluster import Cluster
    from moiety.plan import Pool
    from moiety.report.lanes import Lane
    from moiety.strategy.strategy import Axis


@dataclass(frozen=True, slots=True)
class Span:
    """Lanes from `first_lane` to `last_lane`, and the rank groups that lie in them, interleaved groups together."""

    first_lane: int
    last_lane: int
    num_groups: int
    group_size: int
    first_rank: int
    last_rank: int
    num_nodes: int
    """Nodes of the widest group; 1: no group leaves its node."""
    tier: int
    """The outermost tier that a group needs."""
    example: tuple[int, ...]
    """Members of the first group."""

    @property
    def members(self) -> str:
        """The groups, e.g. `GPUs 0-7` or `4 groups of 2 GPUs`."""
        if self.num_groups == 1:
            return f"GPUs {number_ranges(self.example, most=4)}"
        return f"{self.num_groups:,} groups of {self.group_size} GPUs"


def axis_spans(pool: Pool, lanes: tuple[Lane, ...], cluster: Cluster, axis: Axis) -> tuple[Span, ...]:
    """Return the spans of an axis, from the first lane to the last; together they hold every rank of the pool once."""
    found: list[Span] = []
    for group in sorted(pool.strategy.groups(axis, pool.first_rank)):
        low, high = group[0], group[-1]
        span = Span(
            first_lane=lane_of(lanes, low),
            last_lane=lane_of(lanes, high),
            num_groups=1,
            group_size=len(group),
            first_rank=low,
            last_rank=high,
            num_nodes=_num_nodes(group, cluster),
            tier=cluster.tier_of_group((low, high)),
            example=group,
        )
        if found and span.first_lane <= found[-1].last_lane:
            span = _joined(found.pop(), span)
        found.append(span)
    return tuple(found)


def _num_nodes(group: tuple[int, ...], cluster: Cluster) -> int:
    if cluster.node_of(group[0]) == cluster.node_of(group[-1]):
        return 1
    return len({cluster.node_of(rank) for rank in group})


def _joined(left: Span, right: Span) -> Span:
    return Span(
        first_lane=left.first_lane,
        last_lane=max(left.last_lane, right.last_lane),
        num_groups=left.num_groups + 1,
        group_size=left.group_size,
        first_rank=left.first_rank,
        last_rank=max(left.last_rank, right.last_rank),
        num_nodes=max(left.num_nodes, right.num_nodes),
        tier=max(left.tier, right.tier),
        example=left.example,
    )
