"""A searcher's decisions are those of the core, made beside it, and dropped when they have lost their ground."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from moiety.control.apply import apply
from moiety.control.balancing import found, search_of
from moiety.control.commands import AbortStep
from moiety.control.decide import RULES_BESIDE_SEARCH, settle
from moiety.control.events import Exited, ExpertCounts, Issued, Joined
from moiety.serve import searcher as searching
from moiety.serve.searcher import Searcher
from tests.control.deployments import at_rest, beats, carried_out, deployment, lose, same, started

if TYPE_CHECKING:
    from moiety.control.balancing import Search
    from moiety.control.commands import MoveExperts
    from moiety.control.state import State

RANKS, EXPERTS = 8, 16
HOT = np.arange(EXPERTS) < EXPERTS // RANKS
"""The experts of the first rank."""


def counts(at: float, seed: int) -> ExpertCounts:
    """Return a window in which the first rank has far more to do than the others."""
    shares = np.where(HOT, 3.0, 1.0) * np.ones((2, 1))
    return ExpertCounts(at, np.random.default_rng(seed).poisson(10_000 * shares).astype(np.float64))


def drifted() -> State:
    """Return the state at the moment when a search is due because the load has changed."""
    state = started(deployment(RANKS, EXPERTS))
    for at in range(16):
        state = beats(apply(counts(60.0 * at, at), state), 60.0 * at)
        if search_of(state) is not None:
            return state
        state, _ = at_rest(state, 60.0 * at)
    raise AssertionError("the load has changed")


class Held:
    """Searches that end when they may."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.began, self.may_end = threading.Semaphore(0), threading.Semaphore(0)
        self.epochs: list[int] = []
        patch.setattr(searching, "found", self.search)

    def search(self, search: Search) -> MoveExperts:
        self.epochs.append(search.epoch)
        self.began.release()
        assert self.may_end.acquire(timeout=60)
        return found(search)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch)


def ended(searcher: Searcher, held: Held, state: State) -> MoveExperts | None:
    """Let the search that is under way end, and return what comes of it."""
    held.may_end.release()
    searcher._pool.submit(lambda: None).result(60)  # noqa: SLF001 - the thread is one, so what was before is over
    return searcher.moves_for(state)


def test_what_is_found_beside_is_what_the_core_decides_by_itself(held: Held) -> None:
    state = drifted()
    now = state.time_s
    expected, (command, *_) = settle(state, now)
    beside, nothing = settle(state, now, RULES_BESIDE_SEARCH)
    searcher = Searcher()
    assert not nothing
    assert searcher.moves_for(beside) is None
    assert held.began.acquire(timeout=60)
    assert searcher.moves_for(beside) is None, "it goes on, and nobody waits for it"
    moves = ended(searcher, held, beside)
    assert moves == command
    assert moves is not None
    assert moves.moves
    found_beside, _ = settle(apply(Issued(now, moves), beside), now, RULES_BESIDE_SEARCH)
    assert same(found_beside, expected)


def test_windows_that_come_meanwhile_do_not_end_a_search(held: Held) -> None:
    state, searcher = drifted(), Searcher()
    searcher.moves_for(state)
    for at in range(16, 20):
        state = apply(counts(60.0 * at, at), state)
    moves = ended(searcher, held, state)
    assert moves is not None
    after = apply(Issued(1200.0, moves), state)
    assert carried_out(after, 1200.0).moves == len(moves.moves) > 0


@pytest.mark.parametrize("what", ["a new epoch", "a rank that is lost", "a rank that has come back"])
def test_what_was_decided_of_an_older_epoch_is_dropped_and_searched_anew(held: Held, what: str) -> None:
    state, searcher = drifted(), Searcher()
    if what == "a rank that has come back":
        state, _ = lose(state, [5], state.time_s)
        state = beats(apply(counts(state.time_s + 60.0, 1), state), state.time_s + 60.0)
    searcher.moves_for(state)
    assert held.began.acquire(timeout=60)
    before, now = state.epoch, state.time_s + 60.0
    if what == "a new epoch":
        state = apply(Issued(now, AbortStep(state.epoch + 1, "a link is cut")), state)
    else:
        event = Exited(now, 5) if what == "a rank that is lost" else Joined(now, 5)
        state, _ = settle(beats(apply(event, state), now), now, RULES_BESIDE_SEARCH)
    state = carried_out(beats(state, now), now)
    assert state.epoch > before
    assert ended(searcher, held, state) is None
    held.may_end.release()
    while (moves := searcher.moves_for(state)) is None:
        pass
    assert moves.epoch == state.epoch
    assert held.epochs == [before, state.epoch]
