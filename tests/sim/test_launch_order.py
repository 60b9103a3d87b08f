"""Launch orders: streams that do what they were given in the order they were given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moiety.sim.engine import Task, run, tails_s


@st.composite
def ordered_tasks(draw: st.DrawFn) -> tuple[list[Task], int]:
    """Return tasks on a few resources, each behind earlier ones; their order is a launch order."""
    resources = draw(st.integers(1, 3))
    tasks: list[Task] = []
    for index in range(draw(st.integers(1, 14))):
        after = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        seconds = draw(st.floats(0, 10))
        tasks.append(Task(f"t{index}", seconds, (draw(st.integers(0, resources - 1)),), tuple(sorted(after))))
    return tasks, resources


def makespan_s(tasks: list[Task], start_s: list[float]) -> float:
    return max(start + task.duration_s for start, task in zip(start_s, tasks, strict=True))


@given(ordered_tasks())
def test_each_resource_keeps_the_order(case: tuple[list[Task], int]) -> None:
    tasks, resources = case
    start = run(tasks, resources, launch=range(len(tasks)))
    for resource in range(resources):
        mine = [index for index, task in enumerate(tasks) if task.resources == (resource,)]
        ends = [start[index] + tasks[index].duration_s for index in mine]
        assert all(start[after] >= end - 1e-9 for after, end in zip(mine[1:], ends, strict=False))
    assert max(tails_s(tasks)) - 1e-9 <= makespan_s(tasks, start) <= sum(task.duration_s for task in tasks) + 1e-9


@given(ordered_tasks(), st.data())
def test_a_quicker_task_never_ends_anything_later(case: tuple[list[Task], int], data: st.DataObject) -> None:
    tasks, resources = case
    which = data.draw(st.integers(0, len(tasks) - 1))
    slow = tasks[which]
    quick = Task(slow.name, slow.duration_s * data.draw(st.floats(0, 1)), slow.resources, slow.after)
    before = run(tasks, resources, launch=range(len(tasks)))
    after = run([*tasks[:which], quick, *tasks[which + 1 :]], resources, launch=range(len(tasks)))
    assert all(later <= earlier + 1e-9 for later, earlier in zip(after, before, strict=True))


def test_bulk_fills_the_gaps_and_holds_nothing_up_for_longer_than_itself() -> None:
    tasks = [
        Task("compute", 5.0, (0,), ()),
        Task("dispatch", 2.0, (1,), (0,)),
        *(Task("bulk", 1.5, (1,), (), priority=1) for _ in range(5)),
    ]
    start = run(tasks, 2, launch=range(len(tasks)))
    assert start[1] == 6.0  # the fourth chunk runs from 4.5 to 6
    assert sorted(start[2:]) == [0.0, 1.5, 3.0, 4.5, 8.0]
