"""Micro-batches take turns: one computes at a time, in a fixed order, and an error of one ends all."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("torch")

from moiety.runtime.overlap import Turns


def test_turns_go_round_in_order_and_nobody_computes_beside_another() -> None:
    turns, seen, inside = Turns(), list[str](), threading.Lock()

    def job(name: str, steps: int) -> str:
        for step in range(steps):
            assert inside.acquire(blocking=False), "another micro-batch computes"
            seen.append(f"{name}{step}")
            inside.release()
            turns.pass_on()
        return name

    assert turns.run([lambda: job("a", 4), lambda: job("b", 2)]) == ["a", "b"]
    assert seen == ["a0", "b0", "a1", "b1", "a2", "a3"]
    assert not turns.is_shared


def test_a_job_alone_passes_on_to_nobody() -> None:
    turns = Turns()
    assert turns.run([lambda: turns.pass_on() or 5]) == [5]


def test_the_first_error_is_raised_and_the_other_job_ends() -> None:
    turns, ended = Turns(), list[bool]()

    def fails() -> None:
        turns.pass_on()
        msg = "broken"
        raise ValueError(msg)

    def waits() -> None:
        try:
            while True:
                turns.pass_on()
        finally:
            ended.append(True)

    with pytest.raises(ValueError, match="broken"):
        turns.run([fails, waits])
    assert ended == [True]
    assert turns.run([lambda: 1, lambda: 2]) == [1, 2]
