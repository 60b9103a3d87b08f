"""A router made of a few hidden directions: which experts a token goes to, from what the token is about.

A token's logit for an expert is its popularity plus the strength of the layer times the product of the token's hidden
vector (Gaussian, a few directions) and the expert's loadings, and Gumbel noise; the k largest are chosen, which draws
without replacement in proportion to the exponentials (Kool, van Hoof and Welling, "Stochastic Beams and Where to Find
Them", 2019). Experts with like loadings are chosen together; tokens with like vectors choose alike. Popularity and
strength are fitted by stochastic approximation (Robbins and Monro, 1951) on sampled tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.workload.routing_statistics import implied_pairs, mean_lift, next_layer_lift, pair_counts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Floats64 = NDArray[np.float64]
_SWEEPS = 300
_PILOT_NUMBERS = 8_000_000
_PILOT_TOKENS = (512, 4096)
"""Fewest and most tokens of a pilot; between them, what keeps its logits to `_PILOT_NUMBERS`."""
_STEPS = 20
_SETTLED = 8
"""Last steps of the fit, whose mean is taken."""
_MEMORY = 0.85
"""Of the loads of the steps before, when the pairs of a step are compared with what loads imply."""
_RANK = 16
_INHERITED = 0.98
"""Correlation of the loadings of a layer's experts with those of the layer before, in another order."""
_STEEPEST = 5.0
"""Strength beyond which pairs get more lift from fewer directions, not from logits further apart."""
_COHESION = (0.005, 2.5)
"""Least and most of what is fitted to the lift: up to 1 the share of the steepest strength, then the narrowing."""
_ALIKE = (0.2, 0.4, 0.6, 0.75, 0.9, 1.0)
"""Correlations of two hidden vectors at which the likeness of choices is measured."""
_MOST_LOAD = 0.97
"""Share of all tokens that one expert can be made to get."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a router picks: `top_k` experts, where there are groups from the best `top_k_groups` of `num_groups`."""

    top_k: int
    num_groups: int = 1
    top_k_groups: int = 1

    def of(self, keys: Floats) -> NDArray[np.intp]:
        """Return the experts with the largest keys, `[..., k]`, largest first.

        Groups are chosen by the sum of their two largest keys, as DeepSeek-V3 does (arXiv:2412.19437).
        """
        if self.top_k_groups < self.num_groups:
            grouped = keys.reshape(*keys.shape[:-1], self.num_groups, -1)
            best = np.partition(grouped, -min(2, grouped.shape[-1]), axis=-1)[..., -2:].sum(axis=-1)
            least = np.partition(best, -self.top_k_groups, axis=-1)[..., -self.top_k_groups, None]
            never = np.full_like(grouped, -np.inf)
            keys = np.where((best >= least)[..., None], grouped, never).reshape(keys.shape)
        rows, experts = keys.reshape(-1, keys.shape[-1]), keys.shape[-1]
        least = np.partition(rows, experts - self.top_k, axis=1)[:, experts - self.top_k, None]
        chosen = np.flatnonzero(rows >= least) % experts
        if len(chosen) != len(rows) * self.top_k:  # two keys are the same number
            chosen = np.argpartition(rows, experts - self.top_k, axis=1)[:, experts - self.top_k :]
        chosen = chosen.reshape(len(rows), self.top_k)
        order = np.argsort(-np.take_along_axis(rows, chosen, axis=1), axis=1)
        return np.take_along_axis(chosen, order, axis=1).reshape(*keys.shape[:-1], self.top_k)


@dataclass(frozen=True, slots=True, eq=False)
class LatentRouter:
    """The routers of all layers."""

    popularity: Floats
    """Logit of each expert before the token is looked at, `[layers, experts]`."""
    strength: Floats
    """How much a layer heeds the token's hidden vector, `[layers]`."""
    loadings: Floats
    """Direction of each expert, `[layers, experts, rank]`; of mean square length 1."""
    choice: Choice

    def choose(self, hidden: Floats, rng: np.random.Generator, layers: slice | int = slice(None)) -> NDArray[np.intp]:
        """Return the experts that tokens of these hidden vectors, `[layers, tokens, rank]`, go to in the layers."""
        strength = self.strength[layers][..., None, None]
        keys: Floats = np.matmul(hidden * strength, np.swapaxes(self.loadings[layers], -1, -2), dtype=np.float32)
        keys += self.popularity[layers][..., None, :]
        noise = rng.standard_exponential(keys.shape, dtype=np.float32)
        keys -= np.log(np.maximum(noise, np.float32(1e-30)))  # -log of an exponential number is Gumbel noise
        return self.choice.of(keys)


def fit_router(shares: Floats64, lift: Floats64, choice: Choice, rng: np.random.Generator) -> LatentRouter:
    """Return the router whose experts get these shares of the tokens, `[layers, experts]`, and pairs this lift.

    `lift`, `[layers]`, is that of co-activation (`routing_statistics`); with one expert a token there are no pairs,
    and the strength is a guess from the lift.
    """
    layers, experts = shares.shape
    directions = _directions(layers, experts, rng)
    target = np.maximum(_possible(shares, choice.top_k), 1e-12)
    popularity = np.log(target) - np.log(target).mean(axis=1, keepdims=True)
    cohesion = np.clip(0.7 * np.sqrt(np.maximum(lift - 1, 0.0)), *_COHESION)
    tokens = pilot_tokens(layers, experts)
    usual = target * tokens
    sums = [np.zeros_like(popularity), np.zeros_like(cohesion)]
    for step in range(_STEPS):
        rate = min(1.0, 6.0 / (step + 1))
        router = _router(popularity, cohesion, directions, choice)
        chosen = router.choose(_hidden((layers, tokens, _RANK), rng), rng)
        counts = np.stack([np.bincount(layer.ravel(), minlength=experts) for layer in chosen])
        missing = np.log(target) - np.log((counts + 1.0) / (tokens + 1.0 / target))
        gain = 1.0 + router.strength[:, None].astype(np.float64) / 2  # logits far apart leave popularity less say
        popularity = popularity + np.clip(rate * gain * missing, -2.0, 2.0)
        if choice.top_k > 1:
            usual = _MEMORY * usual + (1 - _MEMORY) * counts  # one pilot's own loads would say too little of rare ones
            implied = implied_pairs(usual * (choice.top_k - 1))
            found = mean_lift(pair_counts(chosen, experts), implied) - 1
            ratio = np.maximum(lift - 1, 1e-4) / np.maximum(found, 1e-4)
            cohesion = np.clip(cohesion * np.clip(ratio, 0.3, 3.0) ** (0.7 * rate), *_COHESION)
        if step >= _STEPS - _SETTLED:
            sums = [sums[0] + popularity / _SETTLED, sums[1] + cohesion / _SETTLED]
    return _router(sums[0], sums[1], directions, choice)


def likeness(router: LatentRouter, rng: np.random.Generator) -> tuple[Floats64, Floats64, Floats64]:
    """Return correlations `[points]` from 0 to 1 and what choices have in common at each.

    The second is `[points, layers]`: the share of a token's experts that another one with so correlated a hidden
    vector has too, above chance, of what is possible above chance. The third, `[points, layers - 1]`: the mean lift,
    less 1, of an expert of a layer and one of the next whose hidden vectors are so correlated.
    """
    layers, experts = router.popularity.shape
    shape = (layers, pilot_tokens(layers, experts), router.loadings.shape[2])
    base = _hidden(shape, rng)
    chosen = router.choose(base, rng)
    same: list[Floats64] = []
    between: list[Floats64] = []
    counts = np.stack([np.bincount(layer.ravel(), minlength=experts) for layer in chosen])
    share = counts / counts.sum(axis=1, keepdims=True)
    chance = (share**2).sum(axis=1) * chosen.shape[2]
    for correlation in _ALIKE:
        fresh: Floats = _hidden(shape, rng) * _single(math.sqrt(1 - correlation**2))
        other = router.choose(base * _single(correlation) + fresh, rng)
        common = (chosen[..., :, None] == other[..., None, :]).sum(axis=(1, 2, 3)) / (shape[1] * chosen.shape[2])
        same.append((common - chance) / np.maximum(1 - chance, 1e-9))
        if layers > 1:
            moved = base[:-1] * _single(correlation) + fresh[1:]
            later = router.choose(moved, rng, slice(1, None))
            between.append(next_layer_lift(chosen[:-1], later, experts) - 1)
    fine = np.linspace(0.0, 1.0, 201)
    empty = np.zeros((len(fine), 0))
    return fine, _smooth(same, fine, (1, 2, 4, 8, 16)), _smooth(between, fine, (2, 4, 8, 16)) if between else empty


def pilot_tokens(layers: int, experts: int) -> int:
    """Return how many tokens a pilot samples."""
    low, high = _PILOT_TOKENS
    return min(max(_PILOT_NUMBERS // (layers * experts), low), high)


def _directions(layers: int, experts: int, rng: np.random.Generator) -> Floats:
    """Return Gaussian directions, `[layers, experts, rank]`, in which layers take after each other."""
    found = rng.standard_normal((layers, experts, _RANK), dtype=np.float32)
    for layer in range(1, layers):
        own = np.float32(np.sqrt(1 - _INHERITED**2)) * found[layer]
        found[layer] = np.float32(_INHERITED) * found[layer - 1, rng.permutation(experts)] + own
    return found


def _router(popularity: Floats64, cohesion: Floats64, directions: Floats, choice: Choice) -> LatentRouter:
    """Return the router of these cohesions, `[layers]`; one above 1 halves each direction's variance so often."""
    narrowing = np.clip(cohesion - 1.0, 0.0, 1.0)[:, None]
    variance = 0.5 ** (narrowing * np.arange(_RANK))
    scale = np.sqrt(variance / variance.sum(axis=1, keepdims=True))
    return LatentRouter(
        popularity=popularity.astype(np.float32),
        strength=(_STEEPEST * cohesion).astype(np.float32),
        loadings=directions * scale[:, None, :].astype(np.float32),
        choice=choice,
    )


def _single(value: float) -> Floats:
    """Return the number in single precision, so that products with it stay that."""
    return np.array(value, dtype=np.float32)


def _hidden(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    return rng.standard_normal(shape, dtype=np.float32)


def _possible(shares: Floats64, top_k: int) -> Floats64:
    """Return the share of all tokens that each expert is to get, at most nearly all; rows sum to k where they can."""
    target = shares * top_k
    for _ in range(20):
        over = target > _MOST_LOAD
        room = np.where(over, 0.0, target)
        left = top_k - np.where(over, _MOST_LOAD, 0.0).sum(axis=1, keepdims=True)
        target = np.where(over, _MOST_LOAD, room * left / np.maximum(room.sum(axis=1, keepdims=True), 1e-12))
    return np.clip(target, 0.0, _MOST_LOAD)


def _smooth(values: list[Floats64], fine: Floats64, powers: tuple[int, ...]) -> Floats64:
    """Return the measured values, `[points of _ALIKE][layers]`, as polynomials of the correlation at the fine points.

    What functions of two correlated Gaussian vectors have in common is a power series of the correlation without
    negative terms (Mehler's formula), so the least squares are taken over such, one factor at a time.
    """
    exponent = np.array(powers, dtype=np.float64)
    at = np.array(_ALIKE, dtype=np.float64)[:, None] ** exponent
    factors = np.zeros((len(powers), len(values[0])))
    left = np.stack(values)
    for _ in range(_SWEEPS):
        for index in range(len(powers)):
            column = at[:, index]
            best = np.maximum(factors[index] + column @ left / (column @ column), 0.0)
            left = left - np.outer(column, best - factors[index])
            factors[index] = best
    return fine[:, None] ** exponent @ factors
