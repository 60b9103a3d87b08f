"""Laws of groups: every collective gives what its definition says, with the same bits on every member, in every run."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tests.ranks import run_ranks
from tests.runtime.comm import collective_laws as laws


def test_every_member_has_the_sum_in_the_order_of_the_members_bit_for_bit() -> None:
    digests = run_ranks(laws.reductions, 4, 1)
    for ranks in laws.GROUPS:
        assert len({digests[rank][ranks] for rank in ranks}) == 1


def test_a_sum_has_the_same_bits_in_every_run() -> None:
    assert run_ranks(laws.reductions, 4, 2) == run_ranks(laws.reductions, 4, 2)


def test_what_is_gathered_is_what_the_members_gave() -> None:
    run_ranks(laws.gatherings, 4, 3)


def test_rows_go_to_the_members_they_are_for_uneven_and_empty_too() -> None:
    run_ranks(laws.exchanges, 4, 4)


def test_what_is_sent_is_received() -> None:
    run_ranks(laws.passings, 4, 5)
