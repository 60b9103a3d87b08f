"""How unevenly the experts' work falls on the ranks of a placement."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moiety.placement.placement import Placement


@lru_cache(maxsize=64)
def zipf_share(num_experts: int, exponent: float) -> tuple[float, ...]:
    """Return the share of the tokens that each expert gets when the i-th most loaded gets ~ i^-exponent.

    The hot experts are spread by bit-like striding (expert e has rank of heat `(e * step) mod E`), so that heat does
    not fall on neighbours only because they are numbered so. `exponent` 0 gives equal shares.
    """
    weights = [(index + 1) ** -exponent for index in range(num_experts)]
    step = next(
        s for s in range(max(int(num_experts * 0.618), 1), 2 * num_experts + 1) if math.gcd(s, num_experts) == 1
    )
    total = sum(weights)
    return tuple(weights[(expert * step) % num_experts] / total for expert in range(num_experts))


def rank_loads(placement: Placement, row: int, share: Sequence[float]) -> tuple[float, ...]:
    """Return each expert rank's share of the layer's expert work, relative to an equal share (1 is the mean).

    Copies of an expert share its tokens equally. `share` has one entry per logical expert and sums to 1.
    """
    slots = placement.physical_to_logical_map[row]
    copies = Counter(slots)
    ranks = placement.num_expert_ranks
    return tuple(
        ranks * sum(share[expert] / copies[expert] for expert in placement.experts_of_rank(row, rank))
        for rank in range(ranks)
    )


def loads_of_counts(
    placement: Placement, counts: Mapping[int, Sequence[float]], num_layers: int
) -> tuple[tuple[float, ...], ...]:
    """Return each expert rank's load in every layer of the model, where routers chose the experts so often, by layer.

    Loads are as for `rank_loads`, 1 in layers without experts and where nothing was chosen.
    """
    columns = [(1.0,) * placement.num_expert_ranks] * num_layers
    for row, layer in enumerate(placement.layers):
        total = math.fsum(counts[layer])
        if total:
            columns[layer] = rank_loads(placement, row, [each / total for each in counts[layer]])
    return tuple(zip(*columns, strict=True))


def mean_balance(placement: Placement, shares: Sequence[Sequence[float]]) -> float:
    """Return mean over max of the expert ranks' work, mean over the layers; as a trace is served where that is known.

    `shares` has a row for each layer of the placement and a column for each expert.
    """
    served = placement.traffic.rank_loads if placement.traffic is not None else ()
    loads = served or [rank_loads(placement, row, share) for row, share in enumerate(shares)]
    return sum(min(sum(each) / len(each) / max(each), 1.0) for each in loads) / len(loads)


def coverage(placement: Placement, lost_ranks: frozenset[int]) -> float:
    """Return the share of (layer, expert) pairs that still have a copy when `lost_ranks` (expert ranks) are gone."""
    held = 0
    for row in range(len(placement.layers)):
        alive: set[int] = set()
        for rank in range(placement.num_expert_ranks):
            if rank not in lost_ranks:
                alive.update(placement.experts_of_rank(row, rank))
        held += len(alive)
    return held / (len(placement.layers) * placement.num_logical_experts)
