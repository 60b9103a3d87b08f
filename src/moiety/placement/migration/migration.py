"""Migration: from a previous slot map to a better one for new loads, in few moves, and only those that pay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.errors import InputError
from moiety.placement.metrics import balance_of, gpu_loads
from moiety.placement.migration.candidates import MoveProblem
from moiety.placement.migration.cost import copies_between, port_bytes, port_time_s, settled
from moiety.placement.migration.order import ordered_moves
from moiety.placement.migration.search import best_within

if TYPE_CHECKING:
    from moiety.placement.migration.cost import CopyLinks
    from moiety.placement.migration.order import Move
    from moiety.placement.migration.search import Levels
    from moiety.placement.problem import Loads, PlacementProblem, SlotMap

_WIDTH = 32
"""Maps of each number of moves that the search follows: a few seconds for 58 x 288 slots and 32 moves."""


@dataclass(frozen=True, slots=True)
class Payback:
    """What a layer's moves cost and what they save, so that only those that pay are made."""

    links: CopyLinks
    layer_step_s: float
    """Seconds that a layer's experts take in a step at perfect balance."""
    horizon_steps: float
    """Steps for which the new loads are expected to last."""

    def __post_init__(self) -> None:
        for name in ("layer_step_s", "horizon_steps"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError("must be a number >= 0", field=name, value=value)


@dataclass(frozen=True, slots=True, eq=False)
class Migration:
    """A new slot map and the moves that lead to it."""

    previous: SlotMap
    slot_map: SlotMap
    """[layers, slots]"""
    moves: tuple[Move, ...]
    """In an order in which each step can be carried out, those that help most first."""
    balance_before: Loads
    """Mean over max of the GPU loads in the worst window under the new loads, [layers]."""
    balance_after: Loads

    @property
    def num_moves(self) -> SlotMap:
        """Changed slots of each layer, [layers]."""
        return (self.slot_map != self.previous).sum(axis=1)


def migrate(
    problem: PlacementProblem,
    previous: SlotMap,
    *,
    max_moves: int | None = None,
    payback: Payback | None = None,
    enough: Loads | None = None,
    holding_cost: Loads | None = None,
    width: int = _WIDTH,
) -> Migration:
    """Return the best map found with at most `max_moves` changed slots a layer, None for any number.

    A layer is judged by its peak GPU load relative to the mean (over the GPU's speed, in its worst window), plus, where
    given, `holding_cost` [layers, experts, nodes] for each node that holds a copy of an expert, in the same unit. No
    result is worse than `previous` [layers, slots], nor than that with fewer moves. With `payback` a layer takes the
    number of moves that saves most over the horizon, less the seconds that its copies take alone on the links. With
    `enough` [layers] a layer takes no more moves than bring it to that peak.
    A layer in which no GPU holds two copies of an expert stays so; where one does, no others are added. `width` is how
    many maps of each number of moves the search follows: more take more time.

    Raises InputError where the previous map does not fit the problem or the numbers are out of range.
    """
    before = _checked(problem, previous)
    if max_moves is not None and max_moves < 0:
        raise InputError("must be at least 0", field="max-moves", value=max_moves)
    move_problem = _move_problem(problem, holding_cost)
    most = problem.num_slots if max_moves is None else min(max_moves, problem.num_slots)
    levels = best_within(move_problem, before, most, width)
    level = np.full(problem.num_layers, len(levels.objective) - 1)
    if payback is not None:
        level = _net_gain_s(problem, levels, payback).argmax(axis=0)
    if enough is not None:
        reached = levels.objective <= enough
        level = np.where(reached.any(axis=0), np.minimum(level, reached.argmax(axis=0)), level)
    chosen = levels.slot_map[level, np.arange(problem.num_layers)]
    after = settled(problem, before, chosen)
    return Migration(
        previous=before,
        slot_map=after,
        moves=ordered_moves(problem, move_problem, before, after),
        balance_before=_balance(problem, before),
        balance_after=_balance(problem, after),
    )


def _net_gain_s(problem: PlacementProblem, levels: Levels, payback: Payback) -> Loads:
    """Return what each level saves over the horizon less the time of its copies, [levels, layers]."""
    saved = (levels.objective[0] - levels.objective) * payback.layer_step_s * payback.horizon_steps
    previous = levels.slot_map[0]
    for level in range(1, len(saved)):
        copies = copies_between(problem, previous, levels.slot_map[level])
        num_bytes = port_bytes(problem, copies, payback.links.expert_bytes)
        saved[level] -= port_time_s(num_bytes, payback.links)
    return saved


def _move_problem(problem: PlacementProblem, holding_cost: Loads | None) -> MoveProblem:
    """Return the loads in units of a GPU's mean, with the costs checked."""
    shape = (problem.num_layers, problem.num_experts, problem.num_nodes)
    if holding_cost is not None and not (holding_cost.shape == shape and bool(np.isfinite(holding_cost).all())):
        raise InputError("must be finite, [layers, experts, nodes]", field="holding_cost", value=holding_cost.shape)
    return MoveProblem(problem.shares() * problem.num_gpus, 1 / problem.speed(), problem.num_nodes, holding_cost)


def _checked(problem: PlacementProblem, previous: SlotMap) -> SlotMap:
    """Return the previous map as int64, or raise InputError where it does not fit the problem."""
    shape = (problem.num_layers, problem.num_slots)
    if previous.shape != shape:
        rule = f"must have {shape[0]} layers of {shape[1]} slots, as the new placement"
        raise InputError(rule, field="previous", value=previous.shape, remedy="plan anew, without a previous placement")
    if previous.min() < 0 or previous.max() >= problem.num_experts:
        rule = f"has experts outside 0 to {problem.num_experts - 1}"
        raise InputError(rule, field="previous", remedy="is it of the same model?")
    held = np.zeros((problem.num_layers, problem.num_experts), dtype=np.bool_)
    held[np.arange(problem.num_layers)[:, None], previous] = True
    if not held.all():
        layer, expert = np.argwhere(~held)[0].tolist()
        raise InputError(f"has no slot with expert {expert} in row {layer}", field="previous")
    return previous.astype(np.int64)


def _balance(problem: PlacementProblem, slot_map: SlotMap) -> Loads:
    """Return mean over max of the GPU loads in the worst window, [layers]."""
    balance: Loads = balance_of(gpu_loads(problem, slot_map), problem.speed()).min(axis=0)
    return balance
