"""Synthetic routing whose statistics are those of a real trace, or asked for, in any size of model.

It is made up: no model ran. Matched are, layer by layer, the skew of the experts' loads, the co-activation lift, the
affinity of a token with the previous one of its sequence, with the others of its sequence and with other sequences of
its window (drift), and the lift between a layer and the next, all as in `routing_statistics`. In a model of another
size affinities within a sequence are as far above chance, of what is possible above chance, and drift as large in
proportion to chance. Not matched: which experts go together, beyond how strongly, and what a token means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from moiety.errors import InputError
from moiety.records import Record
from moiety.workload.latent_router import Choice, LatentRouter, fit_router, likeness
from moiety.workload.routing import MAX_EXPERTS, Routing
from moiety.workload.routing_statistics import (
    NUM_WINDOWS,
    LayerFigures,
    routing_statistics,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DEFAULT_SEQUENCE_LENGTH = 320
_PERSISTENCE = (0.5, 0.9)
"""Least and most chance that a token goes on with the topic of the one before."""
_FEW = 8192
"""Vectors up to which their moments are put right."""
_CHUNK = 65_536
_MAX_CHOICES = 2**31
_Fraction = Annotated[float, Field(ge=0, lt=1)]
_Lift = Annotated[float, Field(ge=1, le=100)]


class RoutingTargets(Record):
    """The statistics that routing is to have, the same in every layer; the defaults are about gpt-oss-20b's."""

    coefficient_of_variation: Annotated[float, Field(ge=0, le=10)] = 0.7
    """Of the experts' loads, which are log-normal."""
    coactivation_lift: _Lift = 1.9
    """How much more often than by their loads two experts are chosen together, mean over what is chosen."""
    previous_token_affinity: _Fraction = 0.31
    """Experts shared with the previous token of the sequence, above chance, of what is possible above chance."""
    same_sequence_affinity: _Fraction = 0.16
    """With the other tokens of the sequence, likewise; at most the figure above, at least what drift gives."""
    same_window_affinity: Annotated[float, Field(ge=0, le=10)] = 0.09
    """Experts shared with the tokens of other sequences in the window, above chance, of chance: the drift."""
    next_layer_lift: _Lift = 1.8
    """How much more often than by their loads an expert and one of the next layer are chosen together."""


@dataclass(frozen=True, slots=True)
class RoutingSize:
    """The size of the routing to be made, checked; raises InputError for one that cannot be."""

    num_layers: int
    num_experts: int
    top_k: int
    num_tokens: int
    num_sequences: int
    num_groups: int = 1
    top_k_groups: int = 1

    def __post_init__(self) -> None:
        most_tokens = _MAX_CHOICES // max(self.num_layers * self.top_k, 1)
        limits = {
            "num_layers": _MAX_CHOICES,
            "num_experts": MAX_EXPERTS,
            "top_k": self.num_experts,
            "num_tokens": most_tokens,
            "num_sequences": self.num_tokens,
            "num_groups": self.num_experts,
            "top_k_groups": self.num_groups,
        }
        for name, most in limits.items():
            value = getattr(self, name)
            if not 1 <= value <= most:
                why = f", as layers x tokens x k may be {_MAX_CHOICES}" if name == "num_tokens" else ""
                raise InputError(f"must be from 1 to {most}{why}", field=name, value=value)
        if self.num_experts % self.num_groups:
            raise InputError(f"must divide {self.num_experts} experts", field="num_groups", value=self.num_groups)
        reach = self.num_experts // self.num_groups * self.top_k_groups
        if self.top_k > reach:
            raise InputError(f"must be at most the {reach} experts of its groups", field="top_k", value=self.top_k)

    @property
    def choice(self) -> Choice:
        """How each token picks."""
        return Choice(self.top_k, self.num_groups, self.top_k_groups)


@dataclass(frozen=True, slots=True, eq=False)
class _LayerTargets:
    """What every layer is to have; affinities above chance."""

    shares: Floats
    lift: Floats
    previous_token: Floats
    same_sequence: Floats
    same_window: Floats
    next_layer_lift: Floats


def synthesize(  # noqa: PLR0913 - a size has as many numbers as it has
    like: Routing,
    *,
    num_layers: int | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    num_tokens: int | None = None,
    num_sequences: int | None = None,
    num_groups: int = 1,
    top_k_groups: int | None = None,
    seed: int = 0,
) -> Routing:
    """Return synthetic routing with the statistics of `like`, of its size where no other is asked for.

    Layers of another number take the statistics of those at the same depth, experts of another number the same curve
    of loads. With `num_groups` tokens choose from the best `top_k_groups` (half of them by default) alone, and pairs
    have at least the lift that this causes. What `like` cannot say (it has counts alone, or no sequences) is that of
    `RoutingTargets`' defaults. The same arguments give the same routing.
    """
    trace = like.topk
    top_k = trace.shape[2] if top_k is None and trace is not None else top_k
    num_tokens = trace.shape[1] if num_tokens is None and trace is not None else num_tokens
    if top_k is None or num_tokens is None:
        rule = "the dump has counts alone, which do not say how many experts a token goes to, or how many tokens"
        raise InputError(rule, field="top_k", remedy="give top_k and num_tokens")
    size = RoutingSize(
        num_layers=like.num_layers if num_layers is None else num_layers,
        num_experts=like.num_experts if num_experts is None else num_experts,
        top_k=top_k,
        num_tokens=num_tokens,
        num_sequences=_sequences_of(like, num_tokens) if num_sequences is None else num_sequences,
        num_groups=num_groups,
        top_k_groups=(num_groups + 1) // 2 if top_k_groups is None else top_k_groups,
    )
    rng = np.random.default_rng(seed)
    return _generated(size, _targets_like(like, size, rng), rng)


def synthesize_from(targets: RoutingTargets, size: RoutingSize, *, seed: int = 0) -> Routing:
    """Return synthetic routing with the statistics asked for; the same arguments give the same routing.

    With groups, pairs have at least the lift that these cause; a lift or affinity beyond what the model of routers
    (`latent_router`) can reach is met as far as it can.
    """
    rng = np.random.default_rng(seed)
    return _generated(size, _layer_targets(targets, size, rng), rng)


def _sequences_of(like: Routing, num_tokens: int) -> int:
    """Return how many sequences of the trace's mean length the tokens make."""
    length = DEFAULT_SEQUENCE_LENGTH
    if like.sequence is not None:
        length = len(like.sequence) / len(np.unique(like.sequence))
    return max(1, round(num_tokens / length))


def _layer_targets(targets: RoutingTargets, size: RoutingSize, rng: np.random.Generator) -> _LayerTargets:
    normal = np.sort(rng.standard_normal((size.num_layers, 64 * size.num_experts)), axis=1)
    sigma = np.sqrt(np.log1p(targets.coefficient_of_variation**2))
    loads = np.exp(sigma * normal).reshape(size.num_layers, size.num_experts, -1).mean(axis=2)
    deviation = loads.std(axis=1, keepdims=True) / loads.mean(axis=1, keepdims=True)
    wanted = targets.coefficient_of_variation
    for _ in range(20):  # the tail that so few experts cannot show: a power of the curve has it
        loads **= np.clip(wanted / np.maximum(deviation, 1e-9), 0.8, 1.25)
        deviation = loads.std(axis=1, keepdims=True) / loads.mean(axis=1, keepdims=True)
    shares = rng.permuted(loads / loads.sum(axis=1, keepdims=True), axis=1)

    chance = np.minimum((shares**2).sum(axis=1) * size.top_k, 0.5)

    def alike(value: float) -> Floats:
        return np.full(size.num_layers, value)

    return _LayerTargets(
        shares=shares,
        lift=alike(targets.coactivation_lift),
        previous_token=alike(targets.previous_token_affinity),
        same_sequence=alike(targets.same_sequence_affinity),
        same_window=alike(targets.same_window_affinity) * (chance / (1 - chance)),
        next_layer_lift=alike(targets.next_layer_lift)[1:],
    )


def _targets_like(like: Routing, size: RoutingSize, rng: np.random.Generator) -> _LayerTargets:
    found = routing_statistics(like)
    default = RoutingTargets()
    depth = (np.arange(size.num_layers, dtype=np.float64) + 0.5) / size.num_layers
    layer = (depth * like.num_layers).astype(np.int64)

    def at_depth(figures: LayerFigures | None, otherwise: float) -> Floats:
        values = [otherwise] if figures is None else figures.per_layer
        return np.interp(depth, (np.arange(len(values)) + 0.5) / len(values), values)

    def above_chance(figures: LayerFigures | None, otherwise: float) -> Floats:
        if figures is None or found.chance_affinity is None:
            return np.zeros(size.num_layers) + otherwise
        old_chance = np.array(found.chance_affinity.per_layer)
        excess = (np.array(figures.per_layer) - old_chance) / np.maximum(1 - old_chance, 1e-9)
        return at_depth(LayerFigures(per_layer=tuple(excess.tolist())), 0.0)

    shares = _shares_like(like, layer, size, rng)
    chance = np.minimum((shares**2).sum(axis=1) * size.top_k, 0.5)
    drift = np.full(size.num_layers, default.same_window_affinity)
    if found.same_window_affinity is not None and found.chance_affinity is not None:
        pairs = zip(found.same_window_affinity.per_layer, found.chance_affinity.per_layer, strict=True)
        drift = at_depth(LayerFigures(per_layer=tuple(max(own / base - 1, 0.0) for own, base in pairs)), 0.0)
    return _LayerTargets(
        shares=shares,
        lift=at_depth(found.coactivation_lift, default.coactivation_lift),
        previous_token=above_chance(found.previous_token_affinity, default.previous_token_affinity),
        same_sequence=above_chance(found.same_sequence_affinity, default.same_sequence_affinity),
        same_window=drift * chance / (1 - chance),
        next_layer_lift=at_depth(found.next_layer_lift, default.next_layer_lift)[1:],
    )


def _shares_like(like: Routing, layer: NDArray[np.int64], size: RoutingSize, rng: np.random.Generator) -> Floats:
    """Return loads with the trace's curve; of the trace's own size they are the trace's own."""
    shares = like.load_share()
    if shares.shape == (size.num_layers, size.num_experts):
        return shares
    curves = np.sort(shares, axis=1)
    rank = (np.arange(size.num_experts, dtype=np.float64) + 0.5) / size.num_experts
    old_rank = (np.arange(like.num_experts, dtype=np.float64) + 0.5) / like.num_experts
    found = np.stack([np.interp(rank, old_rank, curves[each]) for each in layer])
    return rng.permuted(found / found.sum(axis=1, keepdims=True), axis=1)


def _generated(size: RoutingSize, targets: _LayerTargets, rng: np.random.Generator) -> Routing:
    router = fit_router(targets.shares, targets.lift, size.choice, rng)
    mixture = _mixture(router, targets, rng)
    origins = _origins(size, mixture.persistence, rng)
    rank = router.loadings.shape[2]
    vectors = [np.zeros((int(origin[-1]) + 1, rank), np.float32) for origin in origins]
    topk = np.empty((size.num_layers, size.num_tokens, size.top_k), np.min_scalar_type(-size.num_experts))
    for layer, (weights, kept) in enumerate(zip(mixture.weights, mixture.kept, strict=True)):
        vectors = [_mix(each, _balanced(len(each), rank, rng), kept) for each in vectors]
        for start in range(0, size.num_tokens, _CHUNK):
            part = slice(start, start + _CHUNK)
            sources = zip(weights, vectors, origins, strict=True)
            hidden = np.stack([vector[origin[part]] * np.float32(weight) for weight, vector, origin in sources])
            topk[layer, part] = router.choose(hidden.sum(axis=0), rng, layer)
    counts = np.stack([np.bincount(each.ravel(), minlength=size.num_experts) for each in topk])
    return Routing(counts=counts[None].astype(np.float64), topk=topk, sequence=origins[1].astype(np.int32))


def _origins(size: RoutingSize, persistence: float, rng: np.random.Generator) -> tuple[NDArray[np.int64], ...]:
    """Return the window, the sequence, the topic and the number of each token; all rise along the routing."""
    token = np.arange(size.num_tokens, dtype=np.int64)
    window = token * min(NUM_WINDOWS, size.num_tokens) // size.num_tokens
    sequence = token * size.num_sequences // size.num_tokens
    starts = (rng.random(size.num_tokens) >= persistence) | (np.diff(sequence, prepend=-1) > 0)
    return window, sequence, np.cumsum(starts) - 1, token


@dataclass(frozen=True, slots=True)
class _Mixture:
    """How the hidden vectors of tokens are mixed."""

    weights: tuple[tuple[float, ...], ...]
    """Of each layer, of the vectors of the window, the sequence, the topic and the token; their squares sum to 1."""
    kept: tuple[float, ...]
    """Correlation of each layer's vectors with those of the layer before."""
    persistence: float
    """Chance that a token goes on with the topic of the one before."""


def _mixture(router: LatentRouter, targets: _LayerTargets, rng: np.random.Generator) -> _Mixture:
    """Return the mixture with the wanted affinities, from how alike choices are at each correlation of the vectors."""
    correlation, same, between = likeness(router, rng)
    in_window = _where(same, correlation, targets.same_window)
    in_sequence = np.maximum(_where(same, correlation, targets.same_sequence), in_window)
    more = np.maximum(targets.previous_token - targets.same_sequence, 0.0)
    longest = float((more / np.maximum(same[-1] - targets.same_sequence, 1e-9)).max())
    persistence = min(max(longest, _PERSISTENCE[0]), _PERSISTENCE[1])
    # Of the tokens after another, so many share its topic; they must have in common what all are to have on average.
    in_topic = np.maximum(_where(same, correlation, targets.same_sequence + more / persistence), in_sequence)
    squares = np.stack([in_window, in_sequence - in_window, in_topic - in_sequence, 1 - in_topic], axis=1)
    weights: Floats = np.sqrt(np.maximum(squares, 0.0))
    common = (weights[:-1] * weights[1:]).sum(axis=1)
    needed = _where(between, correlation, targets.next_layer_lift - 1)
    kept = np.minimum(needed / np.maximum(common, 1e-9), 1.0)
    return _Mixture(
        weights=tuple(tuple(float(each) for each in row) for row in weights),
        kept=(0.0, *(float(each) for each in kept)),
        persistence=persistence,
    )


def _where(curves: Floats, at: Floats, wanted: Floats) -> Floats:
    """Return where each column of rising curves, `[points, layers]`, reaches the wanted value, from 0 to 1."""
    found = np.zeros_like(wanted)
    for layer, value in enumerate(wanted):
        found[layer] = np.interp(value, curves[:, layer], at)
    return found


def _mix(kept: NDArray[np.float32], fresh: NDArray[np.float32], correlation: float) -> NDArray[np.float32]:
    """Return vectors as spread as both, so correlated with the kept ones."""
    return (kept * correlation + fresh * math.sqrt(1 - correlation**2)).astype(np.float32)


def _balanced(count: int, rank: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return Gaussian vectors, `[count, rank]`; few are made to have mean 0 and uncorrelated directions of variance 1.

    Few vectors would else be off by chance, all layers alike; of n vectors n - 1 directions can be put right.
    """
    found = rng.standard_normal((count, rank), dtype=np.float32)
    free = min(count - 1, rank)
    if free > 0 and count <= _FEW:
        centred = found[:, :free] - found[:, :free].mean(axis=0)
        orthogonal, upper = np.linalg.qr(centred)
        found[:, :free] = orthogonal * np.sign(np.diag(upper)) * np.sqrt(count)
    return found
