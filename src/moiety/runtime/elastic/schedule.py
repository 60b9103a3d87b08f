"""Schedule: the moves of a live migration, batch by batch, in an order in which every expert keeps a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.errors import InputError
from moiety.placement.placement import Placement
from moiety.runtime.elastic.declaration import Batch, Order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.placement.migration.order import Move


class Schedule:
    """Where a generation's live migration is, as the launcher knows it: one batch of moves is under way at a time."""

    def __init__(self, generation: int) -> None:
        self._generation = generation
        self._moves: tuple[Move, ...] = ()
        self._most = 1
        self._number = 0
        self.under_way: Batch | None = None

    @property
    def is_busy(self) -> bool:
        """Whether moves are still to be made."""
        return self.under_way is not None or bool(self._moves)

    @property
    def num_left(self) -> int:
        """Moves after those that are under way."""
        return len(self._moves)

    def begin(self, placement: Placement, moves: Sequence[Move], most: int) -> None:
        """Take on a migration; raises InputError, see `check_moves`."""
        check_moves(placement, moves)
        self._moves, self._most = tuple(moves), most

    def next(self, placement: Placement) -> Batch | None:
        """Return the batch that is under way now; None where there is nothing to move any more."""
        self.under_way = None
        while self._moves and self.under_way is None:
            orders, self._moves = next_batch(placement, self._moves, self._most)
            if orders:
                self._number += 1
                self.under_way = Batch(generation=self._generation, number=self._number, moves=orders)
        return self.under_way


def check_moves(placement: Placement, moves: Sequence[Move]) -> None:
    """Raise InputError for moves of layers, slots or experts that the placement has not, or that leave none of one."""
    rows = [list(row) for row in placement.physical_to_logical_map]
    for number, move in enumerate(moves):
        for name, most in (
            ("layer", len(rows)),
            ("slot", placement.num_slots),
            ("expert", placement.num_logical_experts),
        ):
            if not 0 <= getattr(move, name) < most:
                rule = f"must be from 0 to {most - 1}"
                raise InputError(rule, field=f"moves[{number}].{name}", value=getattr(move, name))
        rows[move.layer][move.slot] = move.expert
        is_last_of_step = number + 1 == len(moves) or moves[number + 1].step != move.step
        lost = set(range(placement.num_logical_experts)) - set(rows[move.layer]) if is_last_of_step else set[int]()
        if lost:
            rule = f"leaves no copy of expert {min(lost)} in layer {placement.layers[move.layer]}"
            raise InputError(rule, field=f"moves[{number}]", remedy="make moves that belong together one step")


def next_batch(placement: Placement, moves: Sequence[Move], most: int) -> tuple[tuple[Order, ...], tuple[Move, ...]]:
    """Return the next moves to make at once, and those after them.

    Whole steps are taken, at least one, while they are at most `most` moves. Where the slot that a move names as its
    source does not hold the expert yet, another one that does is the source.
    """
    taken = 0
    while taken < len(moves):
        step = moves[taken].step
        size = next((count for count, each in enumerate(moves[taken:]) if each.step != step), len(moves) - taken)
        if taken and taken + size > most:
            break
        taken += size
    last = {(move.layer, move.slot): move for move in moves[:taken]}
    rows = placement.physical_to_logical_map
    orders = tuple(
        Order(
            layer=placement.layers[move.layer],
            slot=move.slot,
            expert=move.expert,
            source=_source(rows[move.layer], move),
        )
        for move in last.values()
        if rows[move.layer][move.slot] != move.expert
    )
    return orders, tuple(moves[taken:])


def _source(row: Sequence[int], move: Move) -> int:
    named = move.source_slot
    return named if 0 <= named < len(row) and row[named] == move.expert else row.index(move.expert)


def moved_placement(placement: Placement, moves: Sequence[Order]) -> Placement:
    """Return the placement after some moves; what was measured of the one before is left out."""
    rows = [list(row) for row in placement.physical_to_logical_map]
    for order in moves:
        rows[placement.layers.index(order.layer)][order.slot] = order.expert
    return Placement(
        method="migration",
        layers=placement.layers,
        physical_to_logical_map=tuple(tuple(row) for row in rows),
        num_gpus=placement.num_gpus,
        num_nodes=placement.num_nodes,
        num_logical_experts=placement.num_logical_experts,
        expert_tp=placement.expert_tp,
    )
