"""Translation: what the run time is told to move is what the control plane wants, and it hears when it is done."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.control.apply import apply
from moiety.control.commands import Move, MoveExperts
from moiety.control.events import Issued
from moiety.control.policy import Policy
from moiety.control.state import initial_state, wanted_map
from moiety.errors import InputError
from moiety.placement.placement import Placement
from moiety.runtime.elastic.hand import Sign
from moiety.runtime.elastic.schedule import Schedule, moved_placement
from moiety.serve.looked_after import LookedAfter
from moiety.serve.translation import done_moves, heartbeats, positions, slot_moves
from tests.control.deployments import deployment, plain_map

GPUS = 2
"""Of a rank."""
OF = LookedAfter(
    deployment(4, 8, gpus_per_rank=GPUS, ranks_per_node=4), plain_map(deployment(4, 8, ranks_per_node=4), 12)
)


def placement_of(slot_map: np.ndarray) -> Placement:
    rows = tuple(tuple(row) for row in slot_map.reshape(len(slot_map), -1).tolist())
    return Placement(
        method="test",
        layers=(3, 5),
        physical_to_logical_map=rows,
        num_gpus=8,
        num_nodes=1,
        num_logical_experts=8,
        expert_tp=GPUS,
    )


@given(swaps=st.lists(st.tuples(*[st.integers(0, bound) for bound in (1, 3, 2, 3, 2)]), max_size=6, unique=True))
def test_moves_lead_to_the_map_that_is_wanted_and_are_reported(swaps: list[tuple[int, int, int, int, int]]) -> None:
    state = initial_state(OF.deployment, Policy(), OF.slot_map, epoch=7)
    now = state.slot_map.copy()
    moves: list[Move] = []
    touched: set[tuple[int, int, int]] = set()
    for step, (layer, rank, slot, other, place) in enumerate(swaps):
        here, there = (layer, rank, slot), (layer, other, place)
        if here == there or {here, there} & touched:
            continue
        touched |= {here, there}
        moves += [
            Move(layer, rank, slot, int(now[there]), other, step),
            Move(layer, other, place, int(now[here]), rank, step),
        ]
        now[here], now[there] = now[there], now[here]
    state = apply(Issued(0.0, MoveExperts(7, 3, tuple(moves), "balance")), state)
    places = positions(OF, range(8))
    placement = placement_of(state.slot_map)
    schedule = Schedule(7)
    schedule.begin(placement, slot_moves(moves, placement, places), 2)
    while (batch := schedule.next(placement)) is not None:
        placement = moved_placement(placement, batch.moves)
        for moved in done_moves(state, placement, places, 1.0):
            state = apply(moved, state)
    for moved in done_moves(state, placement, places, 1.0):  # those that changed nothing
        state = apply(moved, state)
    assert not state.pending
    assert placement == placement_of(wanted_map(state)).model_copy(update={"method": placement.method})
    assert np.array_equal(state.slot_map, now)


@pytest.mark.parametrize(
    ("move", "words"),
    [
        (Move(0, 1, 3, 0, None), "moves[1].slot = 3: rank 1 has slots 0 to 2"),
        (Move(0, 1, -1, 0, None), "moves[1].slot = -1"),
        (Move(0, 3, 0, 0, None), "moves[1].rank = 3: no such rank serves"),
        (Move(0, 1, 0, 0, 3), "moves[1].source = 3"),
    ],
)
def test_moves_of_other_slots_than_the_ranks_have_are_refused_as_a_whole(move: Move, words: str) -> None:
    state = initial_state(OF.deployment, Policy(), OF.slot_map, epoch=7)
    good = Move(0, 0, 0, int(state.slot_map[0, 0, 0]), None)
    with pytest.raises(InputError) as caught:
        slot_moves([good, move], placement_of(state.slot_map), positions(OF, range(6)))  # without rank 3
    assert words in str(caught.value)


def sign(home: int, heard_s: float, **more: object) -> Sign:
    fields: dict[str, object] = {
        "member": home,
        "home": home,
        "is_in": True,
        "generation": 7,
        "heard_s": heard_s,
        "moved_s": heard_s,
        "count": 5,
        "waits": True,
        "waits_for": None,
        "loads": False,
    }
    return Sign(**(fields | more))  # type: ignore[arg-type]


def test_a_rank_beats_when_all_of_its_processes_do_and_waits_when_they_all_wait() -> None:
    signs = [
        sign(0, 2.0),
        sign(1, 3.0, waits=False, waits_for=5),
        sign(2, 2.0),
        sign(4, 2.0),
        sign(5, 2.0, is_in=False),
    ]
    (beat,) = heartbeats(signs, OF, range(8), [0.0] * 4)
    assert (beat.rank, beat.time_s, beat.progress, beat.waiting, beat.waits_for) == (0, 2.0, 10, False, 2)
    assert not list(heartbeats(signs, OF, range(8), [2.0] * 4)), "it is known already"
    assert positions(OF, [0, 1, 4, 5, 6, 7]) == {0: 0, 2: 1, 3: 2}
