"""Laws of bulk transfers: they arrive whole, and they give way."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tests.ranks import run_ranks
from tests.runtime.comm import bulk_laws as laws


def test_every_tensor_arrives_whole() -> None:
    run_ranks(laws.transfers, 4)


@pytest.mark.parametrize("held", [0, 1])  # the sender, the receiver
def test_while_a_foreground_transfer_is_paused_no_more_than_one_chunk_goes(held: int) -> None:
    _, received_bytes, _ = run_ranks(laws.held_back, 3, held)
    assert received_bytes <= laws.CHUNK_BYTES


def test_a_foreground_transfer_that_will_not_end_holds_nothing_back_past_the_deadline() -> None:
    sent_s, _, _ = run_ranks(laws.held_back_until_the_deadline, 3, 1.5)
    assert 1.0 < sent_s < 10.0


def test_a_transfer_that_ends_while_its_rank_computes_is_seen_to_end_then() -> None:
    for rank, seconds in enumerate(run_ranks(laws.end_while_computing, 2)):
        assert set(seconds) == {"small all_to_all", "large all_to_all", f"bulk {('send', 'receive')[rank]}"}
        assert max(seconds.values()) < laws.COMPUTED_S - 0.1
