"""The policy: rules in order; the first that has something to say is heard, and then the chain is asked again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.control.apply import apply
from moiety.control.balancing import balance_experts, leave_search
from moiety.control.coverage import cover_experts, repeat_moves
from moiety.control.energy import choose_limit
from moiety.control.events import Issued
from moiety.control.membership import abort_stuck_step, admit_repaired, fence_failed, stand_back
from moiety.control.scaling import park_drained, scale_nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moiety.control.commands import Command
    from moiety.control.events import Event
    from moiety.control.state import State

    Rule = Callable[[State, float], tuple[Command, ...] | None]
    """What it wants done; none where it has nothing to say, None where no later rule may say anything either."""

RULES = (
    stand_back,
    fence_failed,
    abort_stuck_step,
    repeat_moves,
    cover_experts,
    park_drained,
    admit_repaired,
    balance_experts,
    scale_nodes,
    choose_limit,
)
"""In words: stand back without a majority; fence who has failed; abort a step in which all wait; ask again for moves
that got lost; cover every expert; let drained ranks go; take repaired ones back; move what pays; follow the demand with
nodes; and draw no more power than that needs."""
RULES_BESIDE_SEARCH = tuple(leave_search if rule is balance_experts else rule for rule in RULES)
"""For whoever makes the search of `balance_experts` elsewhere, as it takes long, and says what was found (`Issued`)."""
_MOST_ROUNDS = 64


def decide(state: State, now: float, rules: Sequence[Rule] = RULES) -> tuple[Command, ...]:
    """Return what the first rule with something to say wants done; nothing where all is as it should be."""
    for rule in rules:
        commands = rule(state, now)
        if commands is None:
            return ()
        if commands:
            return commands
    return ()


def settle(state: State, now: float, rules: Sequence[Rule] = RULES) -> tuple[State, tuple[Command, ...]]:
    """Return the state in which no rule has more to say, and the commands that were given out on the way there."""
    issued: list[Command] = []
    for _ in range(_MOST_ROUNDS):
        commands = decide(state, now, rules)
        if not commands:
            return state, tuple(issued)
        for command in commands:
            state = apply(Issued(now, command), state)
            issued.append(command)
    raise AssertionError(f"the rules do not come to rest: {issued[-4:]}")


def step(state: State, event: Event) -> tuple[State, tuple[Command, ...]]:
    """Return the state after an event and what is to be done about it."""
    return settle(apply(event, state), event.time_s)
