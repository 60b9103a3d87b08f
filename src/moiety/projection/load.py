"""Classes of ranks by how much expert work falls on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from moiety.placement.load import rank_loads, zipf_share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.placement.placement import Placement
    from moiety.plan import Schedule
    from moiety.projection.scenario import Scenario
    from moiety.strategy.strategy import Strategy

_MAX_CLASSES = 6
_NEGLIGIBLE = 0.01


@dataclass(frozen=True, slots=True)
class LoadClass:
    """Expert ranks with about the same work: its share relative to the mean, for every layer of the model."""

    name: str
    num_expert_ranks: int
    loads: tuple[float, ...]


def load_classes(
    scenario: Scenario, strategy: Strategy, schedule: Schedule, placement: Placement | None
) -> list[LoadClass]:
    """Return the classes of expert ranks, the busiest first.

    Expected loads come from the placement and the measured or assumed shares of the experts, whose copies share their
    tokens equally; where a trace is known and experts have copies, from what each rank serves of it. That is less even:
    near copies serve first, and the traffic that they save must not be had without its price. On top of them a finite
    number of tokens scatters: of `ep` ranks with n rows each on average, the busiest gets about
    n + sqrt(2 n ln ep) (extreme value of a normal law). That rank is a class of its own in every layer.
    """
    model = scenario.model
    moe = model.moe
    if moe is None or placement is None or strategy.ep == 1:
        return [LoadClass("all", strategy.ep, (1.0,) * model.num_layers)]
    per_rank = _expected_loads(scenario, placement)
    rows = schedule.tokens_per_microbatch * strategy.attn_dp / strategy.cp * moe.top_k / strategy.ep
    return classes_of(per_rank, [b.moe is not None for b in model.layers], rows)


def classes_of(per_rank: Sequence[tuple[float, ...]], is_moe: Sequence[bool], rows: float) -> list[LoadClass]:
    """Return the classes of ranks with these loads in every layer, where the mean rank gets `rows` rows of tokens."""
    ranks = len(per_rank)
    scatter = math.sqrt(2 * math.log(ranks) / max(rows, 1e-9))
    grouped = _grouped(per_rank)
    peak = [max(column) for column in zip(*dict.fromkeys(per_rank), strict=True)]
    scattered = {load: min(load * (1 + scatter / math.sqrt(max(load, 1e-9))), max(load, ranks)) for load in set(peak)}
    busiest = tuple(scattered[load] if moe_layer else 1.0 for load, moe_layer in zip(peak, is_moe, strict=True))
    if len(grouped) == 1 and max(busiest) <= 1 + _NEGLIGIBLE:
        return [LoadClass("all", ranks, grouped[0][1])]
    classes = [LoadClass("busiest", 1, busiest)]
    left = 1
    for index, (count, loads) in enumerate(grouped):
        remaining = max(count - left, 0)
        left = max(left - count, 0)
        if remaining:
            classes.append(LoadClass(f"load-{index}", remaining, loads))
    return classes


def expert_share(scenario: Scenario, row: int, num_experts: int) -> tuple[float, ...]:
    """Return each expert's share of the tokens in MoE layer number `row`: measured, or by the workload's law."""
    if scenario.expert_shares is not None:
        return scenario.expert_shares[row]
    return zipf_share(num_experts, scenario.workload.routing_skew)


def _expected_loads(scenario: Scenario, placement: Placement) -> tuple[tuple[float, ...], ...]:
    """Return each expert rank's expected load in every layer of the model."""
    model, skew = scenario.model, scenario.workload.routing_skew
    if scenario.expert_shares is None and skew == 0 and not placement.has_copies:
        return ((1.0,) * model.num_layers,) * placement.num_expert_ranks
    shares = scenario.expert_shares
    return _placed_loads(placement, shares, skew, model.num_layers)  # pyright: ignore[reportArgumentType] - frozen: hashable


@lru_cache(maxsize=64)
def _placed_loads(
    placement: Placement, shares: tuple[tuple[float, ...], ...] | None, skew: float, num_layers: int
) -> tuple[tuple[float, ...], ...]:
    """Return the loads of a placement, [expert ranks][layers]: one placement is judged under many schedules."""
    ranks, law = placement.num_expert_ranks, zipf_share(placement.num_logical_experts, skew)
    served = placement.traffic.rank_loads if placement.traffic is not None else ()
    columns: list[tuple[float, ...]] = []
    known: dict[tuple[tuple[int, ...], tuple[float, ...]], tuple[float, ...]] = {}
    row_of = {layer: row for row, layer in enumerate(placement.layers)}
    for layer in range(num_layers):
        row = row_of.get(layer)
        if row is None:
            columns.append((1.0,) * ranks)
            continue
        if served:
            columns.append(served[row])
            continue
        share = law if shares is None else shares[row]
        key = (placement.physical_to_logical_map[row], share)
        if key not in known:
            known[key] = tuple(round(load, 6) for load in rank_loads(placement, row, share))
        columns.append(known[key])
    return tuple(zip(*columns, strict=True))


def _grouped(per_rank: Sequence[tuple[float, ...]]) -> list[tuple[int, tuple[float, ...]]]:
    """Return (ranks, loads per layer), the heaviest first; neighbours in weight are merged down to a few classes."""
    counted: dict[tuple[float, ...], int] = {}
    for loads in per_rank:
        counted[loads] = counted.get(loads, 0) + 1
    classes = sorted(((count, loads) for loads, count in counted.items()), key=lambda each: (-sum(each[1]), each[1]))
    while len(classes) > _MAX_CLASSES:
        gaps = [sum(classes[i][1]) - sum(classes[i + 1][1]) for i in range(len(classes) - 1)]
        at = gaps.index(min(gaps))
        (count, loads), (other_count, other) = classes[at], classes[at + 1]
        total = count + other_count
        merged = tuple((count * a + other_count * b) / total for a, b in zip(loads, other, strict=True))
        classes[at : at + 2] = [(total, merged)]
    return classes
