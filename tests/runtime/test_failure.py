"""Failures: what an error means for the run, and which of several speaks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.runtime.comm.peer_lost import PeerLost
from moiety.runtime.failure import Cause, Failure, failure_of, first_cause

FAILURES = st.builds(Failure, rank=st.integers(0, 63), cause=st.sampled_from(Cause), message=st.just("words"))


@given(failures=st.lists(FAILURES, min_size=1), data=st.data())
def test_the_cause_speaks_whatever_order_they_come_in(failures: list[Failure], data: st.DataObject) -> None:
    first = first_cause(failures)
    assert first_cause(data.draw(st.permutations(failures))) == first
    assert all(first.cause <= each.cause for each in failures)
    assert all(first.rank <= each.rank for each in failures if each.cause is first.cause)


def int_of(text: str) -> int:
    raise ValueError(text)


def test_wrong_input_is_told_as_it_is() -> None:
    error = InputError("must be there", source="config.json", field="hidden_size")
    assert failure_of(3, error) == Failure(rank=3, cause=Cause.INPUT, message=str(error))


def test_a_lost_peer_is_a_consequence() -> None:
    found = failure_of(3, PeerLost("is gone", label="ep", waited_s=1.0, rank=2))
    assert found.cause is Cause.CONSEQUENCE
    assert found.message.startswith("rank 3: group 'ep': rank 2 is gone")


def test_an_error_that_nobody_expected_says_where_it_arose() -> None:
    with pytest.raises(ValueError, match="first line") as caught:
        int_of("first line\nsecond line")
    found = failure_of(1, caught.value)
    assert found.cause is Cause.FAULT
    assert found.message.startswith(f"rank 1: ValueError: first line ({Path(__file__).name}:")
    assert failure_of(1, MemoryError()).message == "rank 1: MemoryError"
