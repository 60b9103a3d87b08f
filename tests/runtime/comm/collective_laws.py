"""What every collective must give, whatever the shapes: functions that a rank runs, each against its own arithmetic."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from moiety.runtime.comm.group import DIRECT_REDUCTION_BYTES, PIECE_BYTES
from moiety.runtime.comm.priority import Priority
from moiety.runtime.comm.ring import PIECE_BYTES as RING_PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.runtime.comm.group import Group
    from moiety.runtime.comm.network import Network
    from tests.ranks import Place

GROUPS = ((0, 1, 2, 3), (1, 2, 3), (3, 1), (2, 0))
"""All ranks, some that do not begin at 0, and some in another order."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64)
LARGE = (
    (DIRECT_REDUCTION_BYTES // 4,),
    (DIRECT_REDUCTION_BYTES // 4 + 1,),
    (3, DIRECT_REDUCTION_BYTES // 2),
    (PIECE_BYTES // 4 + 5,),
    (7 * RING_PIECE_BYTES // 4 - 3,),
)


def groups_of(place: Place, network: Network) -> Iterator[Group]:
    """Yield the groups that this rank is in, one of itself alone among them."""
    for ranks in (*GROUPS, (place.rank,)):
        if place.rank in ranks:
            yield network.group(ranks, "law", Priority.REDUCTION)


def case_of(seed: int, group: Group, number: int) -> random.Random:
    """Return where the members of a group draw the same case from."""
    return random.Random(f"{seed} {group.ranks} {number}")  # noqa: S311  # for shapes, not for secrets


def tensors(case: random.Random, shape: tuple[int, ...], dtype: torch.dtype, num: int) -> list[torch.Tensor]:
    """Return one tensor for every member, the same on every rank that draws from the same case."""
    generator = torch.Generator().manual_seed(case.randrange(1 << 30))
    return [(torch.randn(shape, generator=generator) * 8).to(dtype) for _ in range(num)]


def shape_of(case: random.Random) -> tuple[int, ...]:
    """Return a small shape: without axes, empty, or up to three axes."""
    return tuple(case.choice((0, 1, 2, 3, 7, 16)) for _ in range(case.randrange(4)))


def sum_in_order(values: list[torch.Tensor]) -> torch.Tensor:
    """Return ((a + b) + c) + ..., in FP32 where the dtype has fewer bits, rounded once."""
    is_low = values[0].dtype in (torch.bfloat16, torch.float16)
    total = values[0].float() if is_low else values[0].clone()
    for value in values[1:]:
        total = total + value
    return total.to(values[0].dtype)


def digest(values: list[torch.Tensor]) -> str:
    """Return a digest of the bits of tensors."""
    digested = hashlib.sha256()
    for value in values:
        digested.update(value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digested.hexdigest()


def reductions(place: Place, seed: int, ranks_per_node: int = 4) -> dict[tuple[int, ...], str]:
    """All-reduce and reduce-scatter give the sum in the order of the members; return digests by group."""
    network = replace(place, ranks_per_node=ranks_per_node).network()
    digests: dict[tuple[int, ...], str] = {}
    for group in groups_of(place, network):
        sums: list[torch.Tensor] = []
        for number in range(20 + len(LARGE) * (group.size > 2)):
            case = case_of(seed, group, number)
            shape = LARGE[number - 20] if number >= 20 else shape_of(case)
            given = tensors(case, shape, case.choice(DTYPES), group.size)
            own = given[group.index].clone()
            if len(shape) == 2 and case.random() < 0.5:  # one that does not lie in one piece
                own = own.t().contiguous().t()
            summed = group.all_reduce(own)
            assert summed is own
            assert torch.equal(summed, sum_in_order(given)), f"all_reduce of {shape} {own.dtype} in {group.ranks}"
            sums.append(summed)
            given = tensors(
                case, (group.size * case.randrange(5), case.choice((1, 7, 9000))), case.choice(DTYPES), group.size
            )
            rows = given[0].shape[0] // group.size
            expected = sum_in_order(given)[group.index * rows : (group.index + 1) * rows]
            assert torch.equal(group.reduce_scatter(given[group.index]), expected), f"reduce_scatter in {group.ranks}"
        digests[group.ranks] = digest(sums)
        group.barrier()
    network.close()
    return digests


def gatherings(place: Place, seed: int) -> None:
    """All-gather, broadcast, counts and objects bring what the others have."""
    network = place.network()
    for group in groups_of(place, network):
        for number in range(12):
            case = case_of(seed, group, number)
            given = tensors(case, shape_of(case), case.choice(DTYPES), group.size)
            assert torch.equal(group.all_gather(given[group.index]), torch.stack(given))
            source = case.randrange(group.size)
            own = given[group.index].clone()
            assert group.broadcast(own, source) is own
            assert torch.equal(own, given[source])
            counts = torch.tensor(
                [[[case.randrange(1 << 40) for _ in range(3)] for _ in given] for _ in given]
            )  # [from, to, 3]
            assert torch.equal(group.exchange_counts(counts[group.index]), counts[:, group.index])
            expected = [{"rank": rank, "text": "x" * rank * number * 1000} for rank in group.ranks]
            assert group.gather_objects(expected[group.index]) == expected
            group.barrier()
    network.close()


def exchanges(place: Place, seed: int) -> None:
    """All-to-all brings the rows of every member in order, uneven and empty, several at once, of any dtype."""
    network = place.network()
    for group in groups_of(place, network):
        pending = []
        for number in range(16):
            case = case_of(seed, group, number)
            most = case.choice((0, 1, 5, 40, 3000 if number % 8 == 0 else 1))
            width = case.choice((1, 3, 64))
            sent = [[case.randrange(most + 1) * case.randrange(2) for _ in group.ranks] for _ in group.ranks]
            dtype = case.choice((torch.float32, torch.bfloat16, torch.uint8))
            rows = [
                torch.arange(sum(each) * width).reshape(-1, width) + 1000 * index for index, each in enumerate(sent)
            ]
            rows = [each.to(dtype) for each in rows]
            received = [each[group.index] for each in sent]
            expected = torch.cat([every.split(counts)[group.index] for every, counts in zip(rows, sent, strict=True)])
            pending.append((group.all_to_all(rows[group.index], sent[group.index], received), expected))
            if case.random() < 0.4 or number == 15:
                case.shuffle(pending)
                for each, wanted in pending:
                    assert torch.equal(each.wait(), wanted)
                    assert each.done()
                pending = []
    network.close()


def passings(place: Place, seed: int) -> None:
    """Send and receive bring a tensor from one member to another, large and small; both may send first."""
    network = place.network()
    group = network.group((0, 1, 2, 3), "passing", Priority.REDUCTION)
    case = case_of(seed, group, 0)
    for size in (0, 1, 1000, 700_000):
        given = tensors(case, (size,), case.choice(DTYPES), 4)
        others = [(group.index + step) % 4 for step in range(1, 4)]
        pending = [group.send(given[group.index], other) for other in others]
        received = [group.receive(torch.empty_like(given[0]), other) for other in others]
        for other, each in zip(others, received, strict=True):
            assert torch.equal(each.wait(), given[other])
        for each in pending:
            assert torch.equal(each.wait(), given[group.index])
    network.close()


def sum_bytes(place: Place, num_items: int, dtype: torch.dtype, ranks_per_node: int) -> dict[str, int]:
    """Return the bytes by tier that this rank sends in one large sum over four ranks."""
    network = replace(place, ranks_per_node=ranks_per_node).network()
    group = network.group((0, 1, 2, 3), "law", Priority.REDUCTION)
    network.traffic.reset()
    group.all_reduce(torch.ones(num_items, dtype=dtype))
    sent = network.traffic.snapshot()["reduction"]["sent_bytes"]
    group.barrier()
    network.close()
    assert isinstance(sent, dict)
    return sent
