"""Laws of failure: who is fenced, what is covered, who may act."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.control.apply import apply
from moiety.control.commands import AbortStep, Admit, Fence, MoveExperts, Refuse, StandBack
from moiety.control.decide import decide, settle
from moiety.control.events import Exited, Heartbeat, Joined, Moved, Parted, StepTimes, Timer, Unfit
from moiety.control.health import slowness
from moiety.control.metrics import metrics_text
from moiety.control.policy import Policy, members_alone
from moiety.control.state import Status, begun_anew, initial_state
from moiety.control.working import is_covered
from tests.control.deployments import at_rest, beats, carried_out, deployment, lose, started

if TYPE_CHECKING:
    from collections.abc import Sequence


@settings(max_examples=60)
@given(st.sets(st.integers(0, 7), max_size=7), st.integers(2, 6), st.sampled_from([16, 24, 32]), st.booleans())
def test_coverage_is_kept_if_and_only_if_it_can_be(gone: set[int], most: int, slots: int, has_checkpoint: bool) -> None:
    of = deployment(most_slots=max(most, slots // 8), has_checkpoint=has_checkpoint)
    before = started(of, slots)
    state, commands = lose(before, gone, 1.0)
    room = (8 - len(gone)) * of.most_slots >= 16
    copies_left = all(
        set(np.delete(layer, list(gone), axis=0).ravel().tolist()) == set(range(16)) for layer in before.slot_map
    )
    possible = room and (has_checkpoint or copies_left)
    assert is_covered(state) == possible
    refusals = [each for each in commands if isinstance(each, Refuse)]
    assert bool(refusals) == (not possible)
    if refusals:  # by name, and only what is really missing
        held = [set(layer.ravel().tolist()) - {-1} for layer in state.slot_map]
        missing = {(layer, expert) for layer in range(2) for expert in range(16) if expert not in held[layer]}
        assert set(refusals[-1].experts) == missing == set(state.refused)


@pytest.mark.parametrize("count", range(1, 17))
def test_of_32_ranks_1_to_16_are_lost(count: int) -> None:
    of = deployment(32, 256, most_slots=20)
    state, _ = lose(started(of, 288), range(0, 2 * count, 2), 1.0)
    assert is_covered(state)
    held = state.slot_map[:, state.ranks.working].reshape(2, 32 - count, -1)
    copies = np.stack([np.bincount(layer.ravel(), minlength=256) for layer in held])
    load = (1 / copies)[np.arange(2)[:, None, None], held].sum(axis=2)
    # the fullest rank sets the pace, of layers that are nothing but experts
    assert (256 / 32) / load.max() >= 0.9 * (32 - count) / 32


def test_copies_are_used_before_the_checkpoint() -> None:
    state = started(deployment(), 32)  # two copies of each, four ranks apart
    state, commands = lose(state, [0], 1.0)
    (moves,) = [each for each in commands if isinstance(each, MoveExperts)] or [None]
    assert is_covered(state)
    assert moves is None or all(move.source is not None for move in moves.moves)
    state, commands = lose(state, [1, 2, 3, 4, 5, 6], 2.0)
    loaded = [move for each in commands if isinstance(each, MoveExperts) for move in each.moves if move.source is None]
    assert is_covered(state)
    assert loaded


def test_a_frozen_rank_is_fenced_and_its_word_is_worth_nothing_afterwards() -> None:
    state, bounds = started(deployment()), Policy()
    state = beats(state, 1.0, without=[5])
    assert decide(state, bounds.patience.silent_s - 0.1) == ()
    late = 1.0 + bounds.patience.silent_s - 0.1
    state, commands = settle(beats(state, late, without=[5]), late)
    (fence,) = [each for each in commands if isinstance(each, Fence)]
    assert (fence.ranks, fence.epoch) == ((5,), 2)
    assert "silent" in fence.reason
    before = state
    state = apply(Heartbeat(late, 5, 1, 7, waiting=False), state)  # SIGCONT
    state = apply(Moved(late, 1, 0, 5, 0, 10), state)
    assert state.zombie_words == before.zombie_words + 2
    assert np.array_equal(state.slot_map, before.slot_map)
    assert not state.ranks.members[5]


def test_a_hung_collective_is_blamed_on_who_has_not_come() -> None:
    state, bounds = started(deployment()), Policy()
    for now in np.arange(0.5, bounds.patience.stuck_s + 1.5, 0.5).tolist():
        for rank in range(8):
            state = apply(Heartbeat(now, rank, state.epoch, 40 - (rank == 3), waiting=rank != 3), state)
        state, commands = settle(state, now)
        if commands:
            break
    assert isinstance(commands[0], Fence)
    assert commands[0].ranks == (3,)


def test_a_collective_in_which_all_wait_is_aborted_and_nobody_fenced() -> None:
    state, bounds = started(deployment()), Policy()
    for now in np.arange(0.5, bounds.patience.stuck_s + 1.5, 0.5).tolist():
        for rank in range(8):
            state = apply(Heartbeat(now, rank, state.epoch, 40, waiting=True), state)
        state, commands = settle(state, now)
        if commands:
            break
    assert [type(each) for each in commands] == [AbortStep]
    assert state.ranks.members.all()
    assert is_covered(state)


def test_a_slow_rank_loses_load_and_a_very_slow_one_is_fenced() -> None:
    for factor, fenced in ((1.05, False), (1.6, False), (4.0, True)):
        state = started(deployment(num_experts=32, most_slots=8), 48)
        for window in range(12):
            own = 0.04 * (1 + 0.01 * ((7 * np.arange(8) + 3 * window) % 5))
            own[2] *= factor
            state = apply(StepTimes(0.1 * window, state.epoch, own, own, np.ones((8, 1))), state)
        state, commands = at_rest(state, 1.2)
        assert any(isinstance(each, Fence) for each in commands) == fenced
        moved = [each for each in commands if isinstance(each, MoveExperts) and each.reason == "heat"]
        assert bool(moved) == (factor == 1.6)
        assert is_covered(state)


@given(st.sets(st.integers(0, 7), min_size=1, max_size=8))
def test_one_part_of_a_partition_at_most_acts(here: set[int]) -> None:
    """Two controllers, each hearing one side: never do both change the epoch."""
    acted = 0
    for side in (here, set(range(8)) - here):
        state = beats(started(deployment()), 10.0, without=set(range(8)) - side)
        _, commands = settle(state, 10.0)
        acts = any(isinstance(each, Fence) for each in commands)
        assert acts != any(isinstance(each, StandBack) for each in commands) or len(side) == 8
        acted += acts
    assert acted <= 1


@pytest.mark.parametrize(("stages", "fenced"), [((4, 4), (6,)), ((6, 2), ())])
def test_ranks_of_a_pipeline_are_slow_only_beside_those_of_their_stage_where_these_are_three(
    stages: tuple[int, int], fenced: tuple[int, ...]
) -> None:
    stage = np.repeat([0, 1], stages)
    own = np.where(stage == 1, 5.0, 1.0)  # the second stage has far more to do
    own[6] *= 4.0
    state, given = started(deployment(8)), []
    for window in range(6):
        now = 0.1 * window
        if state.ranks.members.all():
            state = apply(StepTimes(now, state.epoch, own, own, np.ones((8, 1)), stage), state)
        state, commands = settle(beats(state, now), now)
        given += commands
    fences = [each for each in given if isinstance(each, Fence)]
    assert tuple(rank for each in fences for rank in each.failed) == fenced
    assert (slowness(state) == 1).all()


def test_what_is_known_to_have_ended_is_no_other_part() -> None:
    state, commands = lose(started(deployment()), range(6), 1.0)
    assert not any(isinstance(each, StandBack) for each in commands)
    assert int(state.ranks.working.sum()) == 2


def test_a_controller_that_hears_a_later_epoch_stands_back_for_good() -> None:
    state = apply(Heartbeat(1.0, 0, 5, 0, waiting=False), started(deployment()))
    state, commands = settle(state, 1.0)
    assert [type(each) for each in commands] == [StandBack]
    state = apply(Exited(2.0, 1), beats(state, 2.0))
    assert settle(state, 2.0)[1] == ()


def test_a_second_fault_during_recovery() -> None:
    of = deployment(most_slots=6)
    state = apply(Exited(1.0, 0), beats(started(of), 1.0))
    state, _ = settle(state, 1.0)
    assert state.pending
    half = state.pending[: len(state.pending) // 2]
    for move in half:
        state = apply(Moved(1.1, state.epoch, *move[:4]), state)
    first = state.epoch
    state = apply(Exited(1.2, 1), state)
    state, commands = at_rest(state, 1.2)
    assert state.epoch > first
    assert is_covered(state)
    assert not state.ranks.working[[0, 1]].any()
    assert sum(isinstance(each, Fence) for each in commands) == 1


def test_a_repaired_rank_comes_back_empty_and_is_filled_a_flapping_one_waits_longer() -> None:
    bounds = Policy()
    state = started(deployment(), 32)
    waits: list[float] = []
    now = 0.0
    for _ in range(3):
        state, _ = lose(state, [2], now)
        down = now
        while True:
            now += 5.0
            state = apply(Joined(now, 2), beats(state, now))
            state, commands = at_rest(state, now)
            if any(isinstance(each, Admit) for each in commands):
                break
        waits.append(now - down)
        assert is_covered(state)
        assert (state.slot_map[:, 2] >= 0).all()
    assert waits[0] >= bounds.backoff_s
    assert waits[1] >= 2 * bounds.backoff_s
    assert waits[2] >= 4 * bounds.backoff_s


def test_partners_in_tensor_parallelism_stop_together() -> None:
    state, commands = lose(started(deployment(group_ranks=2)), [3], 1.0)
    (fence,) = [each for each in commands if isinstance(each, Fence)]
    assert fence.ranks == (2, 3)
    assert is_covered(state)


def test_lost_moves_are_asked_for_again_and_twice_is_as_good_as_once() -> None:
    state = apply(Exited(1.0, 0), beats(started(deployment(most_slots=6)), 1.0))
    state, _ = settle(state, 1.0)
    wanted = state.pending
    late = 1.0 + Policy().move_timeout_s + 1
    state, commands = settle(beats(apply(Timer(late), state), late), late)
    (again,) = commands
    assert isinstance(again, MoveExperts)
    assert again.moves == wanted
    state = carried_out(state, late)
    twice = state
    for move in wanted:
        twice = apply(Moved(late, twice.epoch, *move[:4]), twice)
    assert np.array_equal(twice.slot_map, state.slot_map)
    assert twice.moves == state.moves


def test_moves_that_do_not_fit_what_ranks_hold_are_given_up_as_a_whole_and_decided_anew() -> None:
    state = apply(Exited(10.0, 3), beats(started(deployment(), 24), 10.0))
    state, _ = settle(state, 10.0)
    state = apply(Moved(10.0, state.epoch, *state.pending[0][:4]), state)
    assert state.pending
    late, _ = settle(apply(Unfit(10.0, state.epoch - 1, "of before"), state), 10.0)
    assert late.pending == state.pending, "a word about an older epoch is ignored"
    state, given = settle(apply(Unfit(10.0, state.epoch, "rank 2 has slots 0 to 1"), state), 10.0)
    abort, again = given
    assert isinstance(abort, AbortStep)
    assert abort.reason.endswith("rank 2 has slots 0 to 1")
    assert isinstance(again, MoveExperts)
    assert again.epoch == abort.epoch == state.epoch
    state, given = at_rest(carried_out(state, 10.0), 10.0)
    assert is_covered(state)
    assert not any(isinstance(each, AbortStep) for each in given)


def test_ranks_that_all_go_are_refused_not_guessed_at() -> None:
    state, commands = lose(started(deployment()), range(8), 1.0)
    assert any(isinstance(each, StandBack) for each in commands)
    assert (state.ranks.status == Status.WORKING).sum() in {0, 8}


@pytest.mark.parametrize(("ranks", "group", "lost"), [(1, 1, [0]), (8, 8, [3]), (8, 1, range(8))])
def test_where_no_rank_is_left_whoever_comes_back_is_taken_in(ranks: int, group: int, lost: Sequence[int]) -> None:
    before = started(deployment(ranks, group_ranks=group))
    state, commands = lose(before, lost, 1.0)
    assert [type(each) for each in commands] == [Fence, StandBack]
    assert commands[1] == StandBack("no rank is left")
    assert (state.ranks.status == Status.FENCED).all()
    now = 2.0 + Policy().backoff_s
    state, commands = at_rest(apply(Timer(now), state), now)
    assert commands == [], "and there is nothing to decide until then"
    given: list[object] = []
    for rank in range(ranks):
        state, commands = at_rest(apply(Joined(now, rank), state), now)
        given += commands
    assert is_covered(state)
    assert not state.refused
    assert state.slot_map.shape == before.slot_map.shape
    state = beats(state, now)
    assert not state.standing_back
    moved = [move for each in given if isinstance(each, MoveExperts) for move in each.moves]
    assert {move.expert for move in moved if move.source is None} == set(range(16)), "nobody has any to give"


def test_one_rank_alone_that_is_silent_may_go_on_elsewhere_until_it_is_known_to_have_ended() -> None:
    state = beats(started(deployment(1)), 1.0)
    late = 1.0 + Policy().patience.silent_s + 0.1
    state, commands = settle(apply(Timer(late), state), late)
    assert [type(each) for each in commands] == [StandBack]
    assert state.ranks.members.all()
    state, commands = settle(apply(Joined(late + 1, 0), state), late + 1)
    assert [type(each) for each in commands] == [Fence]
    assert state.ranks.status.tolist() == [Status.FENCED]


def test_ranks_that_lose_each_other_meet_again_and_who_is_lost_again_is_cut_off() -> None:
    state, bounds = started(deployment()), Policy()
    settle_s, now = bounds.patience.settle_s, 1.0
    for blamers in ([0], [0, 3, 5]):
        state = beats(state, now)
        for rank in blamers:
            state = apply(Parted(now, rank, state.epoch, 6), state)
        state, commands = settle(state, now)
        if state.epoch > 2:
            break
        assert not commands, "its cause may come to light"
        now += settle_s
        state, commands = settle(beats(state, now), now)
        assert [type(each) for each in commands] == [AbortStep]
        now += 1.0
    assert isinstance(commands[0], Fence)
    assert commands[0].ranks == commands[0].failed == (6,)
    assert "cut off" in commands[0].reason
    assert not state.blames, "it explains what was seen"
    late = apply(Parted(now, 6, state.epoch, 0), state)
    assert late.zombie_words == state.zombie_words + 1


def test_a_loss_that_has_its_cause_is_not_held_against_anybody() -> None:
    state = apply(Parted(1.0, 0, 1, 6), beats(started(deployment()), 1.0))
    state, commands = lose(state, [6], 1.1)
    assert [each for each in commands if isinstance(each, AbortStep)] == []
    assert not state.blames


def test_whom_all_wait_for_twice_is_cut_off() -> None:
    state, bounds, now = started(deployment()), Policy(), 0.0
    commands: tuple[object, ...] = ()
    while not any(isinstance(each, Fence) for each in commands):
        now += 0.5
        assert now < 4 * bounds.patience.deadlocked_s
        for rank in range(8):
            awaited = 2 if rank != 2 else 3
            state = apply(Heartbeat(now, rank, state.epoch, 7, waiting=True, waits_for=awaited), state)
        state, commands = settle(state, now)
    assert not state.ranks.members[2]
    assert int(state.ranks.members.sum()) == 7


def test_a_rank_that_reads_weights_has_more_patience() -> None:
    for loading, fenced in ((False, True), (True, False)):
        state, bounds = started(deployment()), Policy()
        late = 1.0 + bounds.patience.stuck_s + 0.5
        for now in (1.0, late):
            for rank in range(8):
                beat = Heartbeat(now, rank, state.epoch, 40, waiting=rank != 3, loading=loading and rank == 3)
                state = apply(beat, state)
        _, commands = settle(state, late)
        assert bool(commands) == fenced


def test_a_controller_that_its_ranks_end_with_needs_no_majority() -> None:
    state = beats(started(deployment(), policy=Policy(needs_majority=False)), 10.0, without=range(7))
    _, commands = settle(state, 10.0)
    (fence,) = [each for each in commands if isinstance(each, Fence)]
    assert fence.ranks == tuple(range(7))


def test_slots_that_were_added_are_given_up_when_experts_fit_without_them() -> None:
    bounds = Policy()
    before = started(deployment())
    state, _ = lose(before, [2], 1.0)
    assert state.slot_map.shape[2] > before.slot_map.shape[2]
    now = 2.0 + bounds.backoff_s
    state, commands = at_rest(apply(Joined(now, 2), beats(state, now)), now)
    assert any(isinstance(each, Admit) for each in commands)
    assert is_covered(state)
    assert state.slot_map.shape == before.slot_map.shape


def test_where_experts_are_refused_a_rank_that_is_back_does_not_wait_for_moves() -> None:
    bounds = Policy()
    state = apply(Exited(1.0, 2), beats(started(deployment(most_slots=2)), 1.0))
    state, _ = settle(state, 1.0)
    assert state.refused
    now = 2.0 + bounds.backoff_s
    state, commands = at_rest(apply(Joined(now, 2), beats(state, now)), now)
    assert any(isinstance(each, Admit) for each in commands)
    assert is_covered(state)
    assert not state.refused


def test_of_ranks_without_experts_to_look_after_who_works_is_decided() -> None:
    nothing = np.zeros((0, 4), dtype=np.int64)
    state = initial_state(members_alone(4), Policy(needs_majority=False), nothing)
    state, commands = lose(state, [2], 1.0)
    assert [type(each) for each in commands] == [Fence]
    now = 2.0 + state.policy.backoff_s
    state, commands = at_rest(apply(Joined(now, 2), beats(state, now)), now)
    assert [type(each) for each in commands] == [Admit]
    assert 'moiety_ranks{status="working"} 4.0' in metrics_text(state)
    state, _ = lose(state, range(4), now + 1)
    assert not state.ranks.members.any()
    anew = begun_anew(state, nothing, time_s=now + 2)
    assert anew.ranks.members.all()
    assert (anew.epoch, anew.recoveries) == (state.epoch + 1, state.recoveries)
