"""Rules about coverage: every expert on some rank that works, from copies first and the checkpoint second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.control.commands import Move, MoveExperts, Refuse, Resume
from moiety.control.working import is_covered
from moiety.placement.recovery import recover

if TYPE_CHECKING:
    from moiety.control.commands import Command
    from moiety.control.state import State
    from moiety.placement.recovery import Recovery

_SHOWN = 4


def repeat_moves(state: State, now: float) -> tuple[Command, ...]:
    """Ask again for moves that nobody has reported."""
    if not state.pending or now - state.pending_s <= state.policy.move_timeout_s:
        return ()
    reason = state.pending_reason
    return (MoveExperts(state.epoch, state.num_slots, state.pending, reason),)


def cover_experts(state: State, now: float) -> tuple[Command, ...]:  # noqa: ARG001 - every rule takes the time
    """Bring back what no working rank holds; say which experts cannot be, and when they can again."""
    if state.pending:
        return ()
    if is_covered(state):
        return (Resume(state.epoch),) if state.refused else ()
    ranks = state.ranks
    found = recover(
        state.slot_map,
        ranks.working,
        state.forecast.shares,
        most_slots=state.deployment.most_slots,
        slots=state.planned_slots,
        sources=ranks.members,
        checkpoint=state.deployment.has_checkpoint,
    )
    if found.lost != state.refused:
        return (Refuse(state.epoch, found.lost, _named(found)),) if found.lost else (Resume(state.epoch),)
    if not found.fills and found.slot_map.shape[2] == state.slot_map.shape[2]:
        return ()
    return (MoveExperts(state.epoch, found.slot_map.shape[2], _moves(found), "recovery"),)


def _moves(found: Recovery) -> tuple[Move, ...]:
    """Return the fills as moves, each in the first step in which its source has the expert."""
    got: dict[tuple[int, int, int], int] = {}
    moves: list[Move] = []
    for fill in found.fills:
        step = 0 if fill.source is None else got.get((fill.layer, fill.source, fill.expert), -1) + 1
        got[fill.layer, fill.gpu, fill.expert] = step
        moves.append(Move(fill.layer, fill.gpu, fill.slot, fill.expert, fill.source, step))
    return tuple(sorted(moves, key=lambda move: move.step))


def _named(found: Recovery) -> str:
    names = ", ".join(f"expert {expert} of layer {layer}" for layer, expert in found.lost[:_SHOWN])
    more = f" and {len(found.lost) - _SHOWN} more" if len(found.lost) > _SHOWN else ""
    return f"no rank has room for, or no copy is left of, {names}{more}"
