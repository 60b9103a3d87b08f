"""The tokens that the joint solver looks at: the commonest sets of experts, or evenly spaced tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_TOKENS = 65_536
"""Tokens of a layer that are looked through for equal sets."""
_COMMON = 0.5
"""Share of the tokens that the commonest sets must make up to stand for all."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenSample:
    """Tokens of one layer, each at a home node, with weights that sum to 1."""

    experts: NDArray[np.int64]
    """[records, k]"""
    home: NDArray[np.int64]
    """[records]"""
    weight: NDArray[np.float64]
    """[records]"""


def token_sample(topk: NDArray[np.integer[Any]], num_experts: int, num_nodes: int, most: int) -> TokenSample:
    """Return about `most` records for the tokens of a layer, `topk` [tokens, k], with homes uniform over the nodes.

    Where tokens repeat each other's sets of experts, the commonest sets stand at every home; otherwise evenly spaced
    tokens stand at one home each, by turns, twice as many because they say less. Deterministic.
    """
    tokens, k = topk.shape
    spaced = topk[:: -(-tokens // _MOST_TOKENS)].astype(np.int64)
    if num_experts**k < 2**62:
        keys = np.sort(spaced, axis=1) @ (num_experts ** np.arange(k, dtype=np.int64))
        _, first, times = np.unique(keys, return_index=True, return_counts=True)
        common = np.argsort(-times, kind="stable")[: max(most // num_nodes, 1)]
        if times[common].sum() >= _COMMON * len(spaced):
            weight = np.repeat(times[common].astype(np.float64), num_nodes)
            home = np.tile(np.arange(num_nodes, dtype=np.int64), len(common))
            return TokenSample(np.repeat(spaced[first[common]], num_nodes, axis=0), home, weight / weight.sum())
    number = min(2 * most, tokens)
    some = topk[np.arange(number, dtype=np.int64) * tokens // number].astype(np.int64)
    home = np.arange(len(some), dtype=np.int64) % num_nodes
    return TokenSample(np.ascontiguousarray(some), home, np.full(len(some), 1.0 / len(some)))
