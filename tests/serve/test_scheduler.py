"""The scheduler: whatever comes, goes and is lost in whatever order, every sequence gets its tokens once, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.serve.journal import Drawing, Entry
from moiety.serve.scheduler import QueueFullError, Scheduler, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOTS, CHUNK = 2, 5
SIZES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=8)
EVENTS = st.lists(
    st.sampled_from(["submit", "step", "step", "step", "withdraw", "lose", "lose in a step"]), max_size=40
)


def entry(prompt: tuple[int, ...], max_tokens: int = 4) -> Entry:
    return Entry(prompt, max_tokens, Drawing(), frozenset(), None, lambda: None)


def next_token(known: list[int]) -> int:
    """Return what a model says next: it depends on everything before."""
    return hash(tuple(known)) % 1000


def continued(prompt: tuple[int, ...], number: int) -> list[int]:
    known = list(prompt)
    for _ in range(number):
        known.append(next_token(known))
    return known[len(prompt) :]


class Ranks:
    """Caches as real ranks have them, and a model that sees nothing else."""

    def __init__(self, num_groups: int) -> None:
        self._caches: list[list[list[int]]] = [[[] for _ in range(SLOTS)] for _ in range(num_groups)]

    @property
    def num_groups(self) -> int:
        return len(self._caches)

    def regrouped(self, groups: Sequence[int | None]) -> Ranks:
        """Return the ranks of the next generation, some of whose groups keep their caches."""
        after = Ranks(len(groups))
        after._caches = [[[] for _ in range(SLOTS)] if old is None else self._caches[old] for old in groups]
        return after

    def take(self, step: Step) -> list[list[int]]:
        found: list[list[int]] = []
        for caches, rows in zip(self._caches, step.order.groups, strict=True):
            assert len({row.slot for row in rows}) == len(rows), "a cache row belongs to one sequence"
            prompts = sum(len(row.token_ids) for row in rows if len(row.token_ids) > 1)
            assert prompts <= CHUNK
            emitted: list[int] = []
            for row in rows:
                cache = caches[row.slot]
                assert row.start <= len(cache), "a sequence is computed without gaps"
                del cache[row.start :]
                cache += row.token_ids
                if row.emits:
                    emitted.append(next_token(cache))
            found.append(emitted)
        return found


@given(sizes=SIZES, events=EVENTS, num_groups=st.integers(1, 3), data=st.data())
def test_every_token_comes_once_and_in_order(
    sizes: list[tuple[int, int]], events: list[str], num_groups: int, data: st.DataObject
) -> None:
    scheduler = Scheduler(num_slots=SLOTS, prefill_chunk=CHUNK, max_waiting=100)
    entries = [entry(tuple(range(index, index + length)), most) for index, (length, most) in enumerate(sizes)]
    coming, here, gone = list(entries), list[Entry](), list[Entry]()
    scheduler.begin([None] * num_groups)
    ranks = Ranks(num_groups)
    for event in [*events, *["submit"] * len(entries), *["step"] * 400]:
        if event == "submit" and coming:
            here.append(coming.pop(0))
            scheduler.admit(here[-1:])
        elif event == "withdraw" and here:
            gone.append(here.pop(data.draw(st.integers(0, len(here) - 1))))
            scheduler.withdraw(gone[-1])
        elif event.startswith("lose"):
            if event == "lose in a step" and (step := scheduler.next_step()) is not None:
                ranks.take(step)  # never answered; what the caches have of it is computed again
            old = data.draw(st.permutations(range(ranks.num_groups)))
            stay = old[: data.draw(st.integers(0, len(old)))]
            groups = data.draw(st.permutations([*stay, *[None] * data.draw(st.integers(0 if stay else 1, 2))]))
            scheduler.begin(groups)
            ranks = ranks.regrouped(groups)
        elif event == "step":
            step = scheduler.next_step()
            if step is not None:
                scheduler.accept(step, ranks.take(step), 0.0)
    for each in entries:
        expected = continued(each.prompt, each.max_tokens)
        assert each.accepted == (expected if each not in gone else expected[: len(each.accepted)])
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)


def test_decoding_goes_on_beside_a_long_prompt() -> None:
    scheduler = Scheduler(num_slots=SLOTS, prefill_chunk=CHUNK, max_waiting=4)
    scheduler.begin([None])
    ranks = Ranks(1)
    short, long = entry((1, 2), 50), entry(tuple(range(40)))
    scheduler.admit([short])
    for _ in range(2):
        step = scheduler.next_step()
        assert step is not None
        scheduler.accept(step, ranks.take(step), 0.0)
    scheduler.admit([long])
    for number in range(3, 11):  # eight chunks of five
        step = scheduler.next_step()
        assert step is not None
        scheduler.accept(step, ranks.take(step), 0.0)
        assert len(short.accepted) == number
    assert len(long.accepted) == 1


def test_who_was_in_flight_when_the_ranks_were_lost_comes_first() -> None:
    scheduler = Scheduler(num_slots=1, prefill_chunk=CHUNK, max_waiting=4)
    scheduler.begin([None] * 2)
    entries = [entry((index,)) for index in range(4)]
    scheduler.admit(entries)
    assert scheduler.next_step() is not None
    scheduler.begin([None])
    order: list[Entry] = []
    while (step := scheduler.next_step()) is not None:
        order += scheduler.accept(step, [[7]], 0.0)
    assert list(dict.fromkeys(order)) == entries


def test_all_of_a_request_is_admitted_or_nothing() -> None:
    scheduler = Scheduler(num_slots=1, prefill_chunk=CHUNK, max_waiting=2)
    scheduler.begin([None])
    with pytest.raises(QueueFullError):
        scheduler.admit([entry((1,)) for _ in range(4)])
    assert scheduler.num_waiting == 0
    scheduler.admit([entry((1,)) for _ in range(3)])
    with pytest.raises(QueueFullError):
        scheduler.admit([entry((1,))])


def test_an_answer_for_a_sequence_that_left_meanwhile_goes_to_nobody() -> None:
    scheduler = Scheduler(num_slots=1, prefill_chunk=CHUNK, max_waiting=2)
    scheduler.begin([None])
    left, other = entry((1,)), entry((2,))
    scheduler.admit([left, other])
    step = scheduler.next_step()
    assert step is not None
    scheduler.withdraw(left)
    assert scheduler.accept(step, [[5]], 0.0) == []
    assert (left.accepted, other.accepted) == ([], [])


def stepped(scheduler: Scheduler, ranks: Ranks) -> Step:
    step = scheduler.next_step()
    assert step is not None
    scheduler.accept(step, ranks.take(step), 0.0)
    return step


def test_who_keeps_its_cache_goes_on_and_a_chunk_that_was_given_up_begins_anew() -> None:
    scheduler, ranks = Scheduler(num_slots=SLOTS, prefill_chunk=CHUNK, max_waiting=4), Ranks(2)
    scheduler.begin([None, None])
    short, long = entry((1, 2), 9), entry(tuple(range(12)))
    scheduler.admit([short, long])
    stepped(scheduler, ranks)
    assert scheduler.next_step() is not None  # given up
    scheduler.begin([1, 0])
    step = scheduler.next_step()
    assert step is not None
    (again,), (decoded,) = step.order.groups
    assert (again.start, len(again.token_ids)) == (0, CHUNK), "a window may have lost what came before the chunk"
    assert (decoded.start, decoded.token_ids) == (2, tuple(short.accepted))


def test_who_may_end_the_ranks_is_computed_alone_until_it_has_a_token() -> None:
    scheduler, ranks = Scheduler(num_slots=SLOTS, prefill_chunk=CHUNK, max_waiting=4), Ranks(1)
    scheduler.begin([None])
    entries = [entry((1,), 9), entry((2,), 9)]
    scheduler.admit(entries)
    for _ in range(2):
        assert scheduler.next_step() is not None
        assert scheduler.suspects() == entries
        for each in scheduler.suspects():
            each.num_losses += 1
        scheduler.begin([0])
    for number in range(2):
        (rows,) = stepped(scheduler, ranks).order.groups
        assert [row.token_ids for row in rows] == [entries[number].prompt]
    (rows,) = stepped(scheduler, ranks).order.groups
    assert len(rows) == 2
