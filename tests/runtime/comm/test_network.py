"""Laws of networks: ranks that meet, and ranks that lose each other."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from torch.distributed import HashStore

from moiety.errors import InputError
from moiety.runtime.comm.network import Network
from moiety.runtime.comm.priority import Priority
from tests.ranks import Place, rank_outcomes, run_ranks
from tests.runtime.comm import failing_ranks as ranks

SEEN_S = 2.0
"""Much longer than it takes, on a machine that is busy; much shorter than any deadline."""


def alone(**options: object) -> Network:
    """Return the network of a rank that is the only one."""
    return Network(
        rank=0, world_size=1, store=HashStore(), tiers=Place(0, 1, 1, "", 0, has_store=True).tiers, **options
    )


def test_a_rank_alone_needs_nobody() -> None:
    network = alone()
    group = network.group((0,), "alone", Priority.EXCHANGE)
    tensor = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(group.all_reduce(tensor.clone()), tensor)
    assert torch.equal(group.all_gather(tensor), tensor[None])
    assert torch.equal(group.reduce_scatter(tensor), tensor)
    assert torch.equal(group.broadcast(tensor.clone(), 0), tensor)
    assert torch.equal(group.all_to_all(tensor, [2], [2]).wait(), tensor)
    assert torch.equal(group.exchange_counts(torch.tensor([[7]])), torch.tensor([[7]]))
    assert group.gather_objects("x") == ["x"]
    group.barrier()
    assert not any(sum(each["sent_bytes"].values()) for each in network.traffic.snapshot().values())
    network.close()


def test_ranks_meet_in_whatever_order_they_come() -> None:
    assert run_ranks(ranks.come_late, 3) == [[0, 1, 2, 0, -1, -2]] * 3


def test_generations_over_one_store_do_not_meet() -> None:
    assert run_ranks(ranks.meet_again, 3) == [[[(0, number), (1, number), (2, number)] for number in range(2)]] * 3


@pytest.mark.parametrize("name", ["all_reduce", "large all_reduce", "all_to_all", "receive"])
def test_a_killed_peer_is_lost_at_once_and_named(name: str) -> None:
    outcomes = rank_outcomes(ranks.lose_a_killed_peer, 3, name, 0.3)
    assert outcomes[ranks.LOST].exit_code == -9
    seen = [outcomes[rank] for rank in (0, 2)]
    assert [each.error for each in seen] == [None, None]
    assert all(0.2 < each.value[0] < SEEN_S for each in seen)
    assert ranks.LOST in [each.value[1] for each in seen]  # who sees it second may name the one that saw it first


@pytest.mark.parametrize("name", ["all_reduce", "large all_reduce"])
def test_a_silent_peer_is_lost_at_the_deadline_and_named(name: str) -> None:
    outcomes = rank_outcomes(ranks.lose_a_stopped_peer, 3, name, 1.0, without=(ranks.LOST,))
    seen = [outcomes[rank].value for rank in (0, 2)]
    assert all(0.9 < took_s < 1.0 + SEEN_S for took_s, *_ in seen)
    first = min(seen)
    assert first[1] == ranks.LOST
    assert first[2] == pytest.approx(first[0], abs=0.2)
    assert "group 'fated': rank 1 was silent past the deadline (after 1." in first[3]


@pytest.mark.parametrize("name", ["all_reduce", "large all_reduce", "all_to_all", "receive"])
def test_an_abort_ends_every_wait_within_a_slice(name: str) -> None:
    outcomes = rank_outcomes(ranks.stop_on_abort, 3, name, without=(ranks.LOST,))
    for rank in (0, 2):
        assert outcomes[rank].error is None
        took_s, text = outcomes[rank].value
        assert took_s < 0.1 + SEEN_S / 2
        assert "the launcher said stop" in text


def test_a_killed_receiver_ends_a_bulk_transfer() -> None:
    outcomes = rank_outcomes(ranks.lose_the_receiver_of_a_bulk_transfer, 2)
    took_s, lost = outcomes[0].value
    assert took_s < SEEN_S
    assert lost == ranks.LOST


def test_members_that_disagree_about_a_size_are_told() -> None:
    told = run_ranks(ranks.disagree, 2)
    assert told == ["rank 1 sends 44 bytes where 40 are expected", "rank 0 sends 40 bytes where 44 are expected"]


def test_an_address_that_is_not_ones_own_is_refused() -> None:
    with pytest.raises(InputError, match=r"address = '192\.0\.2\.7': a rank must be able to listen on its address"):
        alone(address="192.0.2.7")
