"""Routes: the rows that tokens travel in, and the order in which their results are added; in numpy, for few tokens.

As in `direct.py` and `reduction.py`, which do it on tensors of any device. These ask PyTorch's allocator for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moiety.runtime.conversion import from_array
from moiety.runtime.dispatch.wire import NO_SLOT, Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.runtime.dispatch.exchange import StageShape


@dataclass(frozen=True, slots=True)
class Route:
    """Rows in the order in which they are sent."""

    target: NDArray[np.int64]
    """[rows]: member of the group that a row goes to."""
    source: NDArray[np.int64]
    """[rows]: which of the tokens, or of the rows before, it is of."""
    labels: Labels

    def sent(self, num_members: int) -> NDArray[np.int64]:
        """Return how many rows go to each member."""
        return np.bincount(self.target, minlength=num_members)


def labels_of(slots: torch.Tensor, weights: torch.Tensor, stage: StageShape) -> Labels:
    """Return what this rank's tokens say, of slots [tokens, k] and weights on the host."""
    keys = np.arange(slots.shape[0], dtype=np.int64) + (stage.index << 32)
    return Labels(keys, slots.numpy(), weights.numpy())


def flat_route(given: Labels, stage: StageShape) -> Route:
    """Return a row for every (token, expert, GPU of the expert), by GPU."""
    rank = given.slots // stage.slots_per_rank
    gpu = (rank[:, :, None] * stage.expert_tp + np.arange(stage.expert_tp)).reshape(-1)
    order = np.argsort(gpu, kind="stable")
    pair = order // stage.expert_tp
    token = pair // given.slots.shape[1]
    slots, weights = given.slots.reshape(-1)[pair], given.weights.reshape(-1)[pair]
    return Route(gpu[order], token, Labels(given.keys[token], slots[:, None], weights[:, None]))


def dedup_route(given: Labels, stage: StageShape) -> Route:
    """Return a row for every GPU that a token must reach, by GPU, then by token."""
    rank = np.where(given.slots >= 0, given.slots // stage.slots_per_rank, NO_SLOT)
    reached = np.arange(stage.num_gpus // stage.expert_tp)[:, None, None] == rank
    target, token = np.nonzero(np.repeat(reached.any(axis=2), stage.expert_tp, axis=0))
    return Route(target, token, _named(given, token, rank[token] == (target // stage.expert_tp)[:, None]))


def node_route(given: Labels, stage: StageShape) -> Route:
    """Return a row for every node that a token must reach, by node, then by token."""
    gpu = given.slots // stage.slots_per_rank * stage.expert_tp
    node = np.arange(0, stage.num_gpus, stage.gpus_per_node)[:, None, None]
    reached = (gpu < node + stage.gpus_per_node) & (gpu + stage.expert_tp > node)
    target, token = np.nonzero(reached.any(axis=2))
    return Route(target, token, given.at(token))


def inside_route(given: Labels, stage: StageShape) -> Route:
    """Return what goes on inside this rank's node of the rows that have come there, by GPU of the node, then by row."""
    whole = dedup_route(given, stage)
    first = stage.index // stage.gpus_per_node * stage.gpus_per_node
    here = np.flatnonzero((whole.target >= first) & (whole.target < first + stage.gpus_per_node))
    return Route(whole.target[here] - first, whole.source[here], whole.labels.at(here))


def _named(given: Labels, source: NDArray[np.int64], mine: NDArray[np.bool_]) -> Labels:
    return Labels(given.keys[source], np.where(mine, given.slots[source], NO_SLOT), given.weights[source])


class Additions:
    """Which rows are added to which, one after the other, so that a row is left of each key."""

    def __init__(self, *keys: NDArray[np.int64]) -> None:
        """`keys` [rows] name the sum that a row goes into, level by level; each unites sums of the one before.

        The rows of a sum are added in the order in which they stand, the sums of a level in the order of their keys.
        """
        heads = np.argsort(keys[0], kind="stable")
        self._steps: list[tuple[torch.Tensor, torch.Tensor]] = []
        for key in keys:
            found = key[heads]
            begin = np.flatnonzero(np.diff(found, prepend=-1))
            length = np.diff(begin, append=found.shape[0])
            for step in range(1, int(length.max(initial=0))):
                longer = begin[length > step]
                self._steps.append((_index(heads[longer]), _index(heads[longer + step])))
            heads = heads[begin]
        self._heads = _index(heads)
        self.num_sums = heads.shape[0]

    def take(self, rows: torch.Tensor, room: torch.Tensor, sums: torch.Tensor) -> None:
        """Fill `sums` [sums or more, hidden] by the order of the last key; `rows` [rows, hidden] change meanwhile.

        `room` is for half of the rows.
        """
        for target, source in self._steps:
            taken = torch.index_select(rows, 0, source, out=room[: source.shape[0]])
            rows.index_add_(0, target, taken)
        torch.index_select(rows, 0, self._heads, out=sums[: self.num_sums])


def direct_additions(route: Route, stage: StageShape) -> Additions:
    """Return how the rows of a route are added: experts of a rank, ranks of a node, nodes of a token."""
    token, gpu = route.source, route.target
    return Additions(token * stage.num_gpus + gpu, token * stage.num_nodes + gpu // stage.gpus_per_node, token)


def _index(rows: NDArray[Any]) -> torch.Tensor:
    return from_array(np.ascontiguousarray(rows))
