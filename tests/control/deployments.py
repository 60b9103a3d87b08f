"""Small deployments, and a faithful executor: what the laws of the control plane are tried on."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np

from moiety.control.apply import apply
from moiety.control.commands import MoveExperts
from moiety.control.decide import settle
from moiety.control.events import Exited, Heartbeat, Moved
from moiety.control.policy import Deployment, Policy
from moiety.control.state import State, initial_state
from moiety.placement.migration.cost import CopyLinks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from moiety.control.commands import Command
    from moiety.control.events import Event

LINKS = CopyLinks(expert_bytes=44e6, node_bytes_per_s=400e9, network_bytes_per_s=50e9)


def deployment(num_ranks: int = 8, num_experts: int = 16, **changes: object) -> Deployment:
    """Return a deployment of two layers with experts, in nodes of four ranks (of two where there are fewer)."""
    fields: dict[str, object] = {
        "num_ranks": num_ranks,
        "ranks_per_node": 4 if num_ranks % 4 == 0 else 1,
        "num_experts": num_experts,
        "num_layers": 2,
        "most_slots": num_experts,
        "links": LINKS,
        "layer_step_s": 2e-4,
        "step_s": 0.05,
        "phase": "decode",
    }
    return Deployment(**(fields | changes))  # type: ignore[arg-type]


def plain_map(of: Deployment, slots: int) -> NDArray[np.int64]:
    """Return a map of `slots` slots a layer that deals the experts out in order, again and again."""
    return np.tile(np.arange(slots) % of.num_experts, (of.num_layers, 1))


def started(of: Deployment, slots: int | None = None, policy: Policy | None = None) -> State:
    """Return the state at the start, without copies unless there are more slots than experts."""
    count = slots or -(-of.num_experts // of.num_ranks) * of.num_ranks
    return initial_state(of, policy or Policy(), plain_map(of, count))


def beats(state: State, now: float, *, without: Iterable[int] = ()) -> State:
    """Return the state after a heartbeat of every member but those that are silent."""
    for rank in np.flatnonzero(state.ranks.members).tolist():
        if rank not in set(without):
            state = apply(Heartbeat(now, rank, state.epoch, 0, waiting=False), state)
    return state


def carried_out(state: State, now: float) -> State:
    """Return the state after all pending moves were reported done, in their order."""
    for move in state.pending:
        state = apply(Moved(now, state.epoch, *move[:4]), state)
    return state


def at_rest(state: State, now: float) -> tuple[State, list[Command]]:
    """Return the state after a beat of all, when every command was carried out at once, and all commands."""
    state = beats(state, now)
    given: list[Command] = []
    for _ in range(20):
        state, commands = settle(state, now)
        given += commands
        if not state.pending:
            return state, given
        state = carried_out(state, now)
    raise AssertionError("does not come to rest")


def lose(state: State, ranks: Iterable[int], now: float) -> tuple[State, list[Command]]:
    """Return the state after the processes of these ranks ended and all was done about it."""
    for rank in ranks:
        state = apply(Exited(now, rank), state)
    return at_rest(beats(state, now), now)


def same(one: State, other: State) -> bool:
    """Return whether two states are the same to the bit."""
    return pickle.dumps(one) == pickle.dumps(other)


def moves_of(commands: Iterable[Command], reason: str | None = None) -> int:
    """Return how many moves there are among the commands."""
    return sum(
        len(command.moves)
        for command in commands
        if isinstance(command, MoveExperts) and reason in {None, command.reason}
    )


def replayed(state: State, events: Iterable[Event]) -> State:
    """Return the state after events from a journal."""
    for event in events:
        state = apply(event, state)
    return state
