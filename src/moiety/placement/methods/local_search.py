"""Local search over one layer's slot map: less cross-node traffic without more load than a limit on any GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moiety.placement.methods.kernels import exchange_pass, gain_tables, uneven_gain_tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.placement.methods.token_sample import TokenSample
    from moiety.placement.problem import Loads

    Slots = NDArray[np.int64]

PRICE = 10.0
"""Remote nodes per token that one GPU's mean load above the limit weighs as much as."""
SERVED_WEIGHT = 0.1
"""What load above the limit weighs as served, which each move changes for other experts too, beside even shares."""
_EVEN_TOKENS = 32.0
"""Tokens of an expert's that the even split counts for beside the sampled ones."""
_LEAST_GAIN = 1e-9
_KICK = 3
"""Random swaps that take the search out of a local optimum."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerProblem:
    """One layer: its loads, what each GPU may carry, and its tokens."""

    load: Loads
    """Work of each expert in units of a GPU's mean, [windows, experts]; the first window stands for the whole."""
    limit: Loads
    """Load above which a GPU costs, [windows + 1, GPUs]: in each window with copies sharing
    evenly, and last, times SERVED_WEIGHT, as served."""
    sample: TokenSample
    distance: Loads
    """[nodes, nodes]"""
    uneven: bool
    """Whether the distances between different nodes differ."""


@dataclass(slots=True)
class _State:
    """A slot map with everything that is derived from it."""

    slots: Slots
    on_gpu: NDArray[np.int64]
    on_node: NDArray[np.int64]
    copies: NDArray[np.int64]
    part: Loads
    filled: Loads
    add: Loads
    rem: Loads
    both: Loads
    cost: float
    """Distance to remote nodes per token, plus the price of the load above the limit."""


def improved(problem: LayerProblem, slots: Slots, *, rounds: int, passes: int, seed: int) -> tuple[Slots, float]:
    """Return a map of lower (or the same) cost than `slots` [slots], and that cost: descent, then `rounds` of kicks.

    Each round takes the best map out of its local optimum by random swaps and descends again (iterated local search,
    Lourenco, Martin and Stutzle 2003). `passes` limits each descent.
    """
    random = np.random.default_rng(seed)
    best = _descended(problem, _state(problem, slots), random, passes)
    for _ in range(rounds):
        kicked = _state(problem, _kicked(problem, best.slots, random))
        found = _descended(problem, kicked, random, passes)
        if found.cost < best.cost:
            best = found
    return best.slots, best.cost


def remote_distance(problem: LayerProblem, slots: Slots) -> float:
    """Return the distance to remote nodes per token of the sample; their number where all are equally far."""
    state = _state(problem, slots)
    return state.cost - PRICE * float(np.maximum(state.filled - problem.limit, 0.0).sum())


def _state(problem: LayerProblem, slots: Slots) -> _State:
    """Return the state of a slot map."""
    num_experts = problem.load.shape[1]
    num_nodes, num_gpus = len(problem.distance), problem.limit.shape[1]
    gpu = np.arange(len(slots), dtype=np.int64) // (len(slots) // num_gpus)
    on_gpu = np.bincount(slots * num_gpus + gpu, minlength=num_experts * num_gpus).reshape(num_experts, num_gpus)
    on_node = on_gpu.reshape(num_experts, num_nodes, -1).sum(axis=2)
    return _derived(problem, slots, on_gpu, on_node, on_gpu.sum(axis=1))


def _derived(
    problem: LayerProblem,
    slots: Slots,
    on_gpu: NDArray[np.int64],
    on_node: NDArray[np.int64],
    copies: NDArray[np.int64],
) -> _State:
    """Return the state of a slot map whose copies are counted, its tables filled."""
    num_experts, num_nodes = on_node.shape
    held = (on_node > 0) @ (1 << np.arange(num_nodes, dtype=np.int64))
    table = np.zeros((3 + num_nodes, num_experts, num_nodes))
    add, rem, served = table[:3]
    both = table[3:].reshape(num_experts, num_nodes, num_nodes)
    sample = problem.sample
    fill = uneven_gain_tables if problem.uneven else gain_tables
    traffic = fill(held, sample.experts, sample.home, sample.weight, problem.distance, add, rem, both, served)
    part = _parts(problem, copies, on_node, served)
    node = np.arange(len(slots), dtype=np.int64) // (len(slots) // num_nodes)
    filled = part[:, slots, node].reshape(len(part), on_gpu.shape[1], -1).sum(axis=2)
    cost = float(traffic) + PRICE * float(np.maximum(filled - problem.limit, 0.0).sum())
    return _State(slots, on_gpu, on_node, copies, part, filled, add, rem, both, cost)


def _parts(problem: LayerProblem, copies: Slots, on_node: NDArray[np.int64], served: Loads) -> Loads:
    """Return the work of one copy of each expert on each node, [windows + 1, experts, nodes].

    In the last window it is as served, times SERVED_WEIGHT: the nodes' shares of the sampled tokens, drawn towards the
    even split by as many tokens as chance decides, and each node's share divided over its copies.
    """
    part = np.empty((len(problem.load) + 1, *on_node.shape))
    part[:-1] = (problem.load / copies)[:, :, None]
    share = served / problem.sample.weight.max() + on_node * (_EVEN_TOKENS / copies)[:, None]
    share /= share.sum(axis=1, keepdims=True) * np.maximum(on_node, 1)
    part[-1] = share * (problem.load[0] * SERVED_WEIGHT)[:, None]
    return part


def _descended(problem: LayerProblem, state: _State, random: np.random.Generator, passes: int) -> _State:
    """Return the state after passes of moves while they pay; a pass that does not is tried again with fewer moves."""
    most = len(state.slots)
    for _ in range(passes):
        slots, on_gpu, on_node = state.slots.copy(), state.on_gpu.copy(), state.on_node.copy()
        copies, part, filled = state.copies.copy(), state.part.copy(), state.filled.copy()
        order = random.permutation(len(slots))
        done = exchange_pass(
            order,
            slots,
            on_gpu,
            on_node,
            copies,
            part,
            filled,
            problem.limit,
            PRICE,
            state.add,
            state.rem,
            state.both,
            np.zeros(len(copies), dtype=np.bool_),
            np.empty(filled.shape[1]),
            np.empty(len(copies)),
            most,
        )
        if done == 0:
            break
        moved = _derived(problem, slots, on_gpu, on_node, copies)
        if moved.cost < state.cost - _LEAST_GAIN:
            state = moved
        elif done == 1:
            break
        else:
            most = max(done // 3, 1)
    return state


def _kicked(problem: LayerProblem, slots: Slots, random: np.random.Generator) -> Slots:
    """Return the map after a few random swaps between GPUs that leave no GPU with two copies of an expert."""
    by_gpu = slots.copy().reshape(problem.limit.shape[1], -1)
    width = by_gpu.shape[1]
    for one, other in random.integers(0, len(slots), (_KICK, 2)):
        (g1, i), (g2, j) = divmod(int(one), width), divmod(int(other), width)
        a, b = by_gpu[g1, i], by_gpu[g2, j]
        if g1 != g2 and a not in by_gpu[g2] and b not in by_gpu[g1]:
            by_gpu[g1, i], by_gpu[g2, j] = b, a
    return by_gpu.reshape(-1)
