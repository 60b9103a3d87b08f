"""The engine: what starts when, on what."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.sim.engine import Task, run, tails_s


@st.composite
def task_lists(draw: st.DrawFn) -> list[Task]:
    tasks: list[Task] = []
    for index in range(draw(st.integers(1, 25))):
        after = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set[int]()
        resources = draw(st.sets(st.integers(0, 3), max_size=2))
        duration, priority = draw(st.integers(0, 20)) / 4, draw(st.integers(0, 2))
        tasks.append(Task(f"t{index}", duration, tuple(sorted(resources)), tuple(sorted(after)), priority))
    return tasks


@given(task_lists(), st.booleans())
def test_no_schedule_beats_the_critical_path_or_wastes_all_resources(tasks: list[Task], prioritized: bool) -> None:
    tails = tails_s(tasks)
    start = run(tasks, 4, tails if prioritized else None)
    makespan = max(begin + task.duration_s for begin, task in zip(start, tasks, strict=True))
    assert max(tails) <= makespan + 1e-9
    assert makespan <= sum(task.duration_s for task in tasks) + 1e-9
    assert run(tasks, 4, tails if prioritized else None) == start


@given(task_lists(), st.booleans())
def test_tasks_wait_for_their_inputs_and_share_no_resource(tasks: list[Task], prioritized: bool) -> None:
    start = run(tasks, 4, tails_s(tasks) if prioritized else None)
    ends = [begin + task.duration_s for begin, task in zip(start, tasks, strict=True)]
    for index, task in enumerate(tasks):
        assert all(start[index] >= ends[before] for before in task.after)
    for resource in range(4):
        held = sorted((start[i], ends[i]) for i, task in enumerate(tasks) if resource in task.resources)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(held))


def test_the_lowest_priority_then_the_longest_chain_goes_first() -> None:
    tasks = [
        Task("holds", 1.0, (0,), ()),
        Task("bulk", 1.0, (0,), (), priority=1),
        Task("short", 1.0, (0,), ()),
        Task("long", 1.0, (0,), ()),
        Task("tail of bulk", 9.0, (), (1,)),
        Task("tail of long", 5.0, (), (3,)),
        Task("tail of holds", 6.0, (), (0,)),
    ]
    start = run(tasks, 1, tails_s(tasks))
    assert start[:4] == [0.0, 3.0, 2.0, 1.0]
    # without priorities: in the order of arrival
    assert run(tasks, 1)[:4] == [0.0, 1.0, 2.0, 3.0]


def test_a_task_that_holds_two_resources_waits_for_both() -> None:
    tasks = [Task("a", 2.0, (0,), ()), Task("both", 1.0, (0, 1), ()), Task("b", 1.0, (1,), (), priority=1)]
    assert run(tasks, 2, tails_s(tasks)) == [0.0, 2.0, 0.0]


def test_circles_are_our_own_bug() -> None:
    with pytest.raises(AssertionError, match="circle"):
        run([Task("a", 1.0, (), (1,)), Task("b", 1.0, (), (0,))], 0)
