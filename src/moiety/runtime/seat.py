"""Seat: what one rank is in the plan: its pool, its place on every mesh and the ranks it shares each mesh with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.strategy.stages import stage_layers
from moiety.strategy.strategy import AXES

if TYPE_CHECKING:
    from moiety.plan import Plan, Pool
    from moiety.strategy.strategy import Axis, Strategy


@dataclass(frozen=True, slots=True)
class Seat:
    """One rank of a plan. Everything that two ranks must agree on is read from the plan, here."""

    plan: Plan
    pool: Pool
    rank: int
    """Number of the rank in the whole plan."""
    coordinates: dict[Axis, int]
    groups: dict[Axis, tuple[int, ...]]
    """The ranks of the group of each axis that this rank belongs to, itself included, in mesh order."""
    layers: range
    """Layers of the model that this rank's pipeline stage computes."""

    @property
    def strategy(self) -> Strategy:
        """Degrees of the pool's parallelism."""
        return self.pool.strategy

    @property
    def is_first_stage(self) -> bool:
        """Whether the stage holds the embedding."""
        return self.coordinates["pp"] == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether the stage holds the output head."""
        return self.coordinates["pp"] == self.strategy.pp - 1

    @property
    def attention_group(self) -> int:
        """Number of the attention data-parallel group of the pool that this rank's requests belong to."""
        return self.coordinates["instance"] * self.strategy.attn_dp + self.coordinates["attn_dp"]

    @property
    def num_attention_groups(self) -> int:
        """Groups of the pool with requests of their own."""
        return self.strategy.instances * self.strategy.attn_dp

    @property
    def routes_tokens(self) -> bool:
        """Whether tokens travel to experts (several attention groups share them) instead of lying there already."""
        return self.strategy.attn_dp > 1 and self.strategy.ep > 1


def seat_of(plan: Plan, rank: int) -> Seat:
    """Return the seat of `rank` in the plan; the rank must be one of the plan's."""
    pool = next(each for each in plan.pools if each.first_rank <= rank < each.first_rank + each.num_gpus)
    strategy = pool.strategy
    coordinates = strategy.coordinates(rank - pool.first_rank)
    groups: dict[Axis, tuple[int, ...]] = {
        axis: next(group for group in strategy.groups(axis, pool.first_rank) if rank in group) for axis in AXES
    }
    layers = stage_layers(plan.model.num_layers, strategy.pp)[coordinates["pp"]]
    return Seat(plan, pool, rank, coordinates, groups, layers)
