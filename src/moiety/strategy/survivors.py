"""Which ranks of an instance go on when some of its GPUs are lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moiety.strategy.strategy import Strategy


def stopped_groups(strategy: Strategy, lost: Iterable[int]) -> set[int]:
    """Return the attention groups of a stage that lack one of their GPUs; they stop as a whole."""
    return {rank // strategy.tp for rank in lost}


def alive_expert_ranks(strategy: Strategy, lost: Iterable[int]) -> list[int]:
    """Return the expert ranks of a stage all of whose GPUs go on, when the stage's GPUs `lost` are gone."""
    width = strategy.tp
    gone = {rank for group in stopped_groups(strategy, lost) for rank in range(group * width, (group + 1) * width)}
    dead = {rank // strategy.etp for rank in gone}
    return [rank for rank in range(strategy.ep) if rank not in dead]


def goes_on(strategy: Strategy, lost: Sequence[int]) -> bool:
    """Return whether an instance can go on without the ranks `lost`, counted from its first.

    Its experts must be spread over attention groups of one stage, and one of those groups must be whole.
    """
    spread = strategy.pp == 1 and strategy.ep > 1 and strategy.attn_dp > 1
    return (
        spread and bool(alive_expert_ranks(strategy, lost)) and len(stopped_groups(strategy, lost)) < strategy.attn_dp
    )
