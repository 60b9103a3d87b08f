"""Handover: which experts the ranks of a new generation give each other before it begins to step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from moiety.runtime.elastic.replan import Held, held_by
from moiety.runtime.seat import seat_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.plan import Plan


@dataclass(frozen=True, slots=True)
class Holding:
    """What experts a rank holds when it comes into a generation."""

    experts: Held
    etp: int = 1
    """Parts that each expert is divided into, and ..."""
    part: int = 0
    """... which of them it holds."""


class Transfer(NamedTuple):
    """One expert that goes from one rank to another."""

    expert: int
    source: int
    target: int


def transfers_of(plan: Plan, holdings: Sequence[Holding]) -> dict[int, list[Transfer]]:
    """Return by layer what the ranks send each other, the same on every rank, given what each holds.

    A rank that needs an expert gets it from one that holds the same part of it and computes the same layer, from
    those that have sent least so far; what nobody holds is read from the checkpoint, and so is the layer of a rank
    that held nothing of it in these parts.
    """
    seats = [seat_of(plan, rank) for rank in range(plan.num_gpus)]
    parts = [(seat.strategy.etp, seat.coordinates["etp"]) for seat in seats]
    found: dict[int, list[Transfer]] = {}
    sent: Counter[int] = Counter()
    for target, seat in enumerate(seats):
        if (holdings[target].etp, holdings[target].part) != parts[target]:
            continue
        for layer, experts in held_by(plan, target).items():
            before = holdings[target].experts.get(layer)
            if layer not in seat.layers or before is None:
                continue
            for expert in dict.fromkeys(experts):
                if expert in before:
                    continue
                sources = [
                    rank
                    for rank, each in enumerate(holdings)
                    if (each.etp, each.part) == parts[target]
                    and parts[rank] == parts[target]
                    and layer in seats[rank].layers
                    and expert in each.experts.get(layer, ())
                ]
                if sources:
                    source = min(sources, key=lambda rank: (sent[rank], rank))
                    sent[source] += 1
                    found.setdefault(layer, []).append(Transfer(expert, source, target))
    return found
