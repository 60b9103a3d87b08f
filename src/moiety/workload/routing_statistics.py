"""What a routing dump says of its model: skew, drift, co-activation and affinity, in figures that can be compared.

Lifts and affinities are counted without the bias of small samples (a pair that occurs O times counts O - 1 partners),
so dumps of different length and models of different size can be set side by side: without structure a lift is 1 and
an affinity is that of chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import computed_field

from moiety.errors import InputError
from moiety.records import DerivedRecord, Record
from moiety.workload.routing import windowed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.workload.routing import Routing

MAX_SAMPLED_TOKENS = 65_536
"""Tokens, evenly spaced, that pairs of experts are counted over."""
NUM_WINDOWS = 8
"""Windows that tokens are cut into where the dump has none of its own."""
_MAX_WINDOWS = 64
_NULL_STEPS = 100


class LayerFigures(DerivedRecord):
    """One figure of every layer; between two layers, of every layer but the last."""

    per_layer: tuple[float, ...]

    @computed_field
    @property
    def mean(self) -> float:
        """The mean over the layers."""
        return sum(self.per_layer) / len(self.per_layer)


class RoutingStatistics(Record):
    """The figures of a dump; None where it lacks the data for one."""

    num_layers: int
    num_experts: int
    num_windows: int
    """Windows that the drift is measured over."""
    top_k: int | None
    """Experts a token goes to in a layer."""
    num_tokens: int | None
    num_sequences: int | None
    max_over_mean: LayerFigures
    """Tokens of the busiest expert over the mean; 1 is even."""
    coefficient_of_variation: LayerFigures
    """Standard deviation of the experts' tokens over the mean; 0 is even."""
    gini: LayerFigures
    """Gini coefficient of the experts' tokens, from 0 (even) to 1 - 1 / experts (one has all)."""
    window_distance: LayerFigures | None
    """Total variation distance between the shares of two windows, half the sum of |p - q|, mean over pairs."""
    window_cosine: LayerFigures | None
    """Cosine of the angle between the shares of two windows, mean over pairs of windows; 1 is no drift."""
    coactivation_lift: LayerFigures | None
    """Mean over the pairs of experts that tokens went to of how much more often the pair occurs than loads imply."""
    coactivation_distance: LayerFigures | None
    """Total variation distance of the pairs that occur from those that loads imply; 0 is independent."""
    chance_affinity: LayerFigures | None
    """Share of a token's experts that any other token has too, by the loads alone: sum of p^2 / k."""
    previous_token_affinity: LayerFigures | None
    """Share of a token's experts that the previous token of its sequence has too."""
    same_sequence_affinity: LayerFigures | None
    """Share of a token's experts that any other token of its sequence has too."""
    same_window_affinity: LayerFigures | None
    """Share of a token's experts that a token of another sequence in the same window has too."""
    next_layer_lift: LayerFigures | None
    """As coactivation_lift, of an expert of a layer and one of the next that a token went to."""


def routing_statistics(routing: Routing, *, num_windows: int = NUM_WINDOWS) -> RoutingStatistics:
    """Return the figures of a dump.

    Windows are the dump's; where it has one window but tokens, `num_windows` consecutive ones of equal length. Pairs
    of experts are counted over at most `MAX_SAMPLED_TOKENS` evenly spaced tokens, drift over at most 64 evenly spaced
    windows; everything else over the whole dump.
    """
    topk, sequence = routing.topk, routing.sequence
    if routing.num_windows == 1 and topk is not None:
        if num_windows < 1:
            raise InputError("must be at least 1", field="windows", value=num_windows)
        routing = windowed(routing, min(num_windows, topk.shape[1]))
    drift = _drift(routing.counts)
    loads = routing.load_share()
    mean = 1 / routing.num_experts
    pairs = _pair_figures(topk, routing.num_experts) if topk is not None else _PairFigures()
    affinity = affinities(routing)
    return RoutingStatistics(
        num_layers=routing.num_layers,
        num_experts=routing.num_experts,
        num_windows=routing.num_windows,
        top_k=None if topk is None else topk.shape[2],
        num_tokens=None if topk is None else topk.shape[1],
        num_sequences=None if sequence is None else len(np.unique(sequence)),
        max_over_mean=_figures_of(loads.max(axis=1) / mean),
        coefficient_of_variation=_figures_of(loads.std(axis=1) / mean),
        gini=_figures_of(_gini(loads)),
        window_distance=_figures(drift[0]),
        window_cosine=_figures(drift[1]),
        coactivation_lift=_figures(pairs.lift),
        coactivation_distance=_figures(pairs.distance),
        chance_affinity=_figures(affinity.chance),
        previous_token_affinity=_figures(affinity.previous_token),
        same_sequence_affinity=_figures(affinity.same_sequence),
        same_window_affinity=_figures(affinity.same_window),
        next_layer_lift=_figures(pairs.next_layer_lift),
    )


def _figures_of(values: NDArray[np.float64]) -> LayerFigures:
    return LayerFigures(per_layer=tuple(float(each) for each in values))


def _figures(values: NDArray[np.float64] | None) -> LayerFigures | None:
    return None if values is None or len(values) == 0 else _figures_of(values)


def _gini(loads: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Gini coefficient of each row: sum of (2 i - n - 1) x_i / (n sum of x), x in ascending order."""
    count = loads.shape[1]
    weight = 2.0 * np.arange(1, count + 1, dtype=np.float64) - count - 1
    return (np.sort(loads, axis=1) @ weight) / (count * loads.sum(axis=1))


def _drift(counts: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | tuple[None, None]:
    """Return the mean distance and cosine between windows, both `[layers]`.

    A layer without tokens in a window is left out of that window's pairs; one seen in a single window did not drift.
    """
    if len(counts) > _MAX_WINDOWS:
        counts = counts[np.arange(_MAX_WINDOWS) * len(counts) // _MAX_WINDOWS]
    seen = counts.sum(axis=2) > 0
    if seen.any(axis=1).sum() < 2:  # noqa: PLR2004 - a drift is between two
        return None, None
    shares = counts / np.maximum(counts.sum(axis=2, keepdims=True), 1e-300)
    unit = shares / np.maximum(np.linalg.norm(shares, axis=2, keepdims=True), 1e-300)
    distance, cosine, num_pairs = (np.zeros(counts.shape[1]) for _ in range(3))
    for first in range(len(counts) - 1):
        both = seen[first] & seen[first + 1 :]  # [later windows, layers]
        distance += (np.abs(shares[first + 1 :] - shares[first]).sum(axis=2) / 2 * both).sum(axis=0)
        cosine += ((unit[first + 1 :] * unit[first]).sum(axis=2) * both).sum(axis=0)
        num_pairs += both.sum(axis=0)
    alone = num_pairs == 0
    return distance / np.maximum(num_pairs, 1), np.where(alone, 1.0, cosine / np.maximum(num_pairs, 1))


@dataclass(frozen=True, slots=True, eq=False)
class Affinities:
    """Shares of a token's experts that another token has too, each `[layers]`; None where the dump cannot tell."""

    chance: NDArray[np.float64] | None = None
    previous_token: NDArray[np.float64] | None = None
    same_sequence: NDArray[np.float64] | None = None
    same_window: NDArray[np.float64] | None = None


def affinities(routing: Routing) -> Affinities:
    """Return how alike the choices of two tokens are, by what they have in common.

    Tokens of a sequence follow each other in the order of the dump, also where sequences are interleaved in it.
    """
    topk, sequence = routing.topk, routing.sequence
    if topk is None:
        return Affinities()
    num_choices = topk.shape[2]
    share = routing.counts.sum(axis=0)
    share = share / np.maximum(share.sum(axis=1, keepdims=True), 1e-300)
    chance = (share**2).sum(axis=1) * num_choices
    if sequence is None:
        return Affinities(chance=chance)
    order = np.argsort(sequence, kind="stable")
    ordered = sequence[order]
    follows = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(follows) == 0:
        return Affinities(chance=chance)
    sorted_already = bool((np.diff(order) == 1).all())
    columns = np.ascontiguousarray(np.moveaxis(topk if sorted_already else topk[:, order], 2, 0))
    shared = np.zeros(topk.shape[0])
    mask = ordered[1:] == ordered[:-1]
    for mine in columns:
        for other in columns:
            shared += ((mine[:, 1:] == other[:, :-1]) & mask).sum(axis=1)
    within, across = _pairs_by_sequence(routing, topk, sequence)
    return Affinities(
        chance=chance,
        previous_token=shared / (len(follows) * num_choices),
        same_sequence=None if within is None else within / num_choices,
        same_window=None if across is None else across / num_choices,
    )


def _pairs_by_sequence(
    routing: Routing, topk: NDArray[np.integer[Any]], sequence: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Return the mean number of experts that two tokens share, `[layers]`: of one sequence; of two in one window.

    Every two tokens count once. Windows are taken as of equally many tokens; a sequence that several windows have a
    part of counts as one in each.
    """
    num_tokens, experts = topk.shape[1], routing.num_experts
    window = np.arange(num_tokens, dtype=np.int64) * routing.num_windows // num_tokens
    _, group = np.unique(sequence, return_inverse=True)
    _, part = np.unique(window * num_tokens + group, return_inverse=True)
    own = float((np.bincount(part).astype(np.float64) ** 2).sum())
    other = float((np.bincount(window).astype(np.float64) ** 2).sum()) - own
    within, across = np.zeros(topk.shape[0]), np.zeros(topk.shape[0])
    for index, layer in enumerate(topk):
        same_part = _square_sum(part[:, None] * experts + layer)
        within[index] = same_part - layer.size  # a token shares all its experts with itself
        across[index] = _square_sum(window[:, None] * experts + layer) - same_part
    pairs = own - num_tokens
    return (within / pairs if pairs > 0 else None), (across / other if other > 0 else None)


def _square_sum(values: NDArray[np.int64]) -> float:
    """Return the sum over the different values of the square of how often each occurs."""
    flat = values.ravel()
    dense = int(flat.max()) < 8 * len(flat)  # else most places of a count would stay empty
    counts = np.bincount(flat) if dense else np.unique(flat, return_counts=True)[1]
    return float((counts.astype(np.float64) ** 2).sum())


@dataclass(frozen=True, slots=True, eq=False)
class _PairFigures:
    lift: NDArray[np.float64] | None = None
    distance: NDArray[np.float64] | None = None
    next_layer_lift: NDArray[np.float64] | None = None


def _pair_figures(topk: NDArray[np.integer[Any]], num_experts: int) -> _PairFigures:
    num_tokens = topk.shape[1]
    if num_tokens > MAX_SAMPLED_TOKENS:
        topk = topk[:, np.arange(MAX_SAMPLED_TOKENS) * num_tokens // MAX_SAMPLED_TOKENS]
    lift = distance = None
    if topk.shape[2] > 1:
        pairs = pair_counts(topk, num_experts)
        implied = implied_pairs(pairs.sum(axis=2))
        lift = mean_lift(pairs, implied)
        distance = np.abs(pairs - implied).sum(axis=(1, 2)) / (2 * np.maximum(pairs.sum(axis=(1, 2)), 1))
    between = next_layer_lift(topk[:-1], topk[1:], num_experts) if topk.shape[0] > 1 else None
    return _PairFigures(lift, distance, between)


def pair_counts(topk: NDArray[np.integer[Any]], num_experts: int) -> NDArray[np.float64]:
    """Return how many tokens went to both of two experts, `[layers, experts, experts]`, 0 on the diagonal."""
    counts = np.zeros((topk.shape[0], num_experts, num_experts))
    for layer, chosen in enumerate(topk):
        columns = chosen.T.astype(np.int64)
        flat = [columns[i] * num_experts + columns[j] for j in range(len(columns)) for i in range(j)]
        found = np.bincount(np.concatenate(flat), minlength=num_experts**2).reshape(num_experts, num_experts)
        counts[layer] = found + found.T
    return counts


def implied_pairs(partners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the pairs that loads alone imply, `[layers, experts, experts]`: a_i a_j off the diagonal.

    `partners`, `[layers, experts]`, is how many partners each expert has in all, (k - 1) times its tokens; the factors
    a are such that the rows add up to it (iterative proportional fitting). It is the distribution of most entropy of
    pairs of two different experts with these loads.
    """
    total = partners.sum(axis=1, keepdims=True)
    factor = partners / np.sqrt(np.maximum(total, 1e-300))
    for _ in range(_NULL_STEPS):
        others = np.maximum(factor.sum(axis=1, keepdims=True) - factor, 1e-300)
        factor = np.sqrt(factor * partners / others)
    implied = factor[:, :, None] * factor[:, None, :]
    implied[:, np.arange(partners.shape[1]), np.arange(partners.shape[1])] = 0.0
    return implied


def mean_lift(counts: NDArray[np.float64], implied: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of counts / implied over what was counted, `[layers]`: sum of O (O - 1) / E over sum of O."""
    ratio = np.divide(counts * (counts - 1), implied, out=np.zeros_like(counts), where=implied > 0)
    return ratio.sum(axis=(1, 2)) / np.maximum(counts.sum(axis=(1, 2)), 1)


def next_layer_lift(
    first: NDArray[np.integer[Any]], second: NDArray[np.integer[Any]], num_experts: int
) -> NDArray[np.float64]:
    """Return the mean lift of an expert in `first` and one in `second`, `[layers, tokens, k]`, that tokens have."""
    lifts = np.zeros(len(first))
    for layer, (mine, other) in enumerate(zip(first, second, strict=True)):
        left, right = mine.T.astype(np.int64) * num_experts, other.T.astype(np.int64)
        flat = np.concatenate([each + other_each for each in left for other_each in right])
        found = np.bincount(flat, minlength=num_experts**2).reshape(1, num_experts, num_experts).astype(np.float64)
        implied = found.sum(axis=2)[:, :, None] * found.sum(axis=1)[:, None, :] / found.sum()
        lifts[layer] = mean_lift(found, implied)[0]
    return lifts
