"""Laws of groups: every collective gives what its definition says, with the same bits on every member, in every run."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from moiety.runtime.comm.ring import goes_round
from tests.ranks import run_ranks
from tests.runtime.comm import collective_laws as laws


def test_every_member_has_the_sum_in_the_order_of_the_members_bit_for_bit() -> None:
    digests = run_ranks(laws.reductions, 4, 1)
    for ranks in laws.GROUPS:
        assert len({digests[rank][ranks] for rank in ranks}) == 1


def test_a_sum_that_goes_round_a_ring_of_nodes_has_the_same_bits() -> None:
    assert run_ranks(laws.reductions, 4, 1, 2) == run_ranks(laws.reductions, 4, 1)


@pytest.mark.parametrize(("dtype", "partial_bytes", "sum_bytes"), [(torch.float32, 4, 4), (torch.bfloat16, 4, 2)])
def test_a_ring_sends_the_partial_sums_once_round_and_the_sums_once(
    dtype: torch.dtype, partial_bytes: int, sum_bytes: int
) -> None:
    sent = run_ranks(laws.sum_bytes, 4, 1_000_000, dtype, 2)
    million = 1_000_000
    assert sent == [
        {"node": million * (partial_bytes + sum_bytes), "network": 0},
        {"node": 0, "network": million * (partial_bytes + sum_bytes)},
        {"node": million * partial_bytes, "network": 0},
        {"node": 0, "network": million * sum_bytes},
    ]


def test_shares_send_each_member_its_own_and_what_becomes_of_it() -> None:
    sent = run_ranks(laws.sum_bytes, 4, 1_000_000, torch.float32, 4)
    assert sent == [{"node": 3 * 2 * 1_000_000}] * 4  # to three others a quarter, twice


@pytest.mark.parametrize(
    ("ranks", "gpus_per_node", "expected"),
    [
        ((0, 1, 2, 3), 2, True),
        ((0, 1, 2, 3), 4, False),
        ((0, 1, 2, 3), 1, False),
        ((0, 2, 1, 3), 2, False),
        ((1, 2, 3), 2, True),
        ((0, 1, 2, 3, 4, 5, 6, 7), 2, True),
        ((3,), 2, False),
    ],
)
def test_sums_go_round_where_nodes_in_turn_have_several_members(
    ranks: tuple[int, ...], gpus_per_node: int, *, expected: bool
) -> None:
    assert goes_round(ranks, gpus_per_node) is expected


def test_a_sum_has_the_same_bits_in_every_run() -> None:
    assert run_ranks(laws.reductions, 4, 2) == run_ranks(laws.reductions, 4, 2)


def test_what_is_gathered_is_what_the_members_gave() -> None:
    run_ranks(laws.gatherings, 4, 3)


def test_rows_go_to_the_members_they_are_for_uneven_and_empty_too() -> None:
    run_ranks(laws.exchanges, 4, 4)


def test_what_is_sent_is_received() -> None:
    run_ranks(laws.passings, 4, 5)
