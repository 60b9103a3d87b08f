"""The two compiled loops of the joint solver: what each move would save of the traffic, and a sweep of paying moves.

They work on one layer. Compiled on first use and cached beside the module, so only `moiety place` and plans with a
routing dump pay for it. Nodes are bits of an integer, so there may be up to 62 of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numba import njit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

MAX_NODES = 62


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return cast("Callable[..., Any]", njit(nogil=True, cache=True)(function))  # pyright: ignore[reportUnknownMemberType]


@_compiled
def gain_tables(  # noqa: C901, PLR0912, PLR0913, PLR0915, PLR0917 - one loop nest, compiled as one
    held: NDArray[Any],
    experts: NDArray[Any],
    home: NDArray[Any],
    weight: NDArray[Any],
    distance: NDArray[Any],
    uneven: bool,  # noqa: FBT001 - compiled code is called by position
    add: NDArray[Any],
    rem: NDArray[Any],
    both: NDArray[Any],
    served: NDArray[Any],
) -> float:
    """Return the weighted distance to the remote nodes that the tokens reach, and fill the tables of what moves change.

    `held` [experts] has the nodes with a copy as bits. Token r, `weight[r]`, at node `home[r]`, needs `experts[r]`
    (k of them): copies at home serve first, then the nodes that hold an only copy, then nodes shared by many.
    `add[e, n]` becomes what a new copy of e on node n saves, `rem[e, a]` what losing the copy on node a costs, and
    `both[e, a, n]` how much less it costs where node n gets a copy at the same time. Each is exact for one move of a
    token's experts, and first-order where two of them move at once. `served[e, n]` becomes the weight of the tokens
    whose expert e, of several copies, node n serves, the nodes at hand taking turns. `uneven` says that distances
    differ.
    """
    total = 0.0
    k = experts.shape[1]
    num_nodes = add.shape[1]
    for r in range(experts.shape[0]):
        start = home[r]
        local = 1 << start
        w = weight[r]
        once = 0  # nodes that must be visited
        twice = 0  # those that stay visited when one expert leaves
        several = False
        for j in range(k):
            m = held[experts[r, j]]
            if m & local == 0:
                if m & (m - 1):
                    several = True
                else:
                    twice |= once & m
                    once |= m
        chosen = 0  # nodes visited for experts with several copies
        if several:
            for j in range(k):
                m = held[experts[r, j]]
                if m & (local | once) == 0:
                    shared = False
                    for i in range(j + 1, k):
                        other = held[experts[r, i]]
                        if other & (local | once) == 0 and other & m:
                            m &= other
                            shared = True
                    bit = m & -m
                    if uneven:
                        nearest = 1e300
                        for n in range(num_nodes):
                            if m >> n & 1 and distance[start, n] < nearest:
                                nearest = distance[start, n]
                                bit = 1 << n
                    once |= bit
                    chosen |= bit
                    if shared:
                        twice |= bit
        bits, n = once, 0
        while bits:
            if bits & 1:
                total += w * distance[start, n]
            bits >>= 1
            n += 1
        reach = once | local
        for j in range(k):
            e = experts[r, j]
            m = held[e]
            hit = m & reach
            lone = m & (m - 1) == 0
            if not lone:
                if m & local:
                    served[e, start] += w
                else:
                    hits, bits = 0, hit
                    while bits:
                        hits += 1
                        bits &= bits - 1
                    bits, n = hit, 0
                    while bits:
                        if bits & 1:
                            served[e, n] += w / hits
                        bits >>= 1
                        n += 1
                if hit & (hit - 1):
                    continue  # other copies are at hand
            sole = hit & (local | twice) == 0 and (lone or hit & chosen != 0)
            a, bits = 0, hit >> 1
            while bits:
                bits >>= 1
                a += 1
            cost = w
            if sole:
                if uneven:
                    cost *= distance[start, a]
                    second = 1e300  # what the next copy would cost
                    for n in range(num_nodes):
                        if n != a and m >> n & 1:
                            second = min(second, w * distance[start, n])
                    if not lone:
                        rem[e, a] += second - cost
                    for n in range(num_nodes):
                        near = 0.0
                        if n == a or reach >> n & 1 == 0:
                            near = w * distance[start, n]
                            if near < cost:
                                add[e, n] += cost - near
                            elif lone:
                                both[e, a, n] += cost - near
                        if not lone and n != a:
                            both[e, a, n] += max(second - max(cost, near), 0.0)
                bits, n = reach & ~hit, 0
                while bits:
                    if bits & 1:
                        add[e, n] += cost
                    bits >>= 1
                    n += 1
                continue
            if uneven:
                farthest, nearest = 0.0, 1e300
                for n in range(num_nodes):
                    farthest = max(farthest, distance[start, n])
                    if n != a and m >> n & 1:
                        nearest = min(nearest, distance[start, n])
                cost *= farthest if lone else nearest
                for n in range(num_nodes):
                    near = w * distance[start, n]
                    if reach >> n & 1 == 0 and near < cost:
                        both[e, a, n] += cost - near
            rem[e, a] += cost
            bits, n = reach, 0
            while bits:
                if bits & 1:
                    both[e, a, n] += cost
                bits >>= 1
                n += 1
    return total


@_compiled
def exchange_pass(  # noqa: C901, PLR0912, PLR0913, PLR0915, PLR0917 - one loop nest, compiled as one
    order: NDArray[Any],
    slots: NDArray[Any],
    on_gpu: NDArray[Any],
    on_node: NDArray[Any],
    copies: NDArray[Any],
    part: NDArray[Any],
    filled: NDArray[Any],
    limit: NDArray[Any],
    price: float,
    add: NDArray[Any],
    rem: NDArray[Any],
    both: NDArray[Any],
    most: int,
) -> int:
    """Make at most `most` moves that pay by the tables, in place, and return how many: each expert moves once.

    A move swaps the experts of two slots on different GPUs, or gives the slot of a redundant copy to another expert.
    It pays when what it saves of traffic exceeds `price` times the load that it pushes above `limit` [windows, GPUs].
    `slots` [slots] has each slot's expert, `on_gpu` [experts, GPUs] and `on_node` [experts, nodes] count copies, `part`
    [windows, experts, nodes] is the work of one copy of an expert on a node in units of a GPU's mean, `filled`
    [windows, GPUs] that of the GPUs. A moved copy takes its work along; one that goes leaves its work to the others,
    and a new one takes an even share of theirs. No GPU gets a second copy.
    """
    num_slots, num_experts = len(slots), len(copies)
    num_windows, num_gpus = filled.shape
    per_gpu = num_slots // num_gpus
    per_node = num_slots // add.shape[1]
    gpus_of_node = num_gpus // add.shape[1]
    moved = np.zeros(num_experts, dtype=np.bool_)
    excess = np.zeros(num_gpus)  # what each GPU's load above its limit costs
    relief = np.zeros(num_experts)  # what the GPUs that hold an expert cost: no more can be saved by another copy
    stale = True
    done = 0
    for at in range(len(order)):
        if done >= most:
            break
        p = order[at]
        a = slots[p]
        if moved[a]:
            continue
        g1 = p // per_gpu
        n1 = p // per_node
        if stale:
            stale = False
            relief[:] = 0.0
            for g in range(num_gpus):
                excess[g] = 0.0
                for v in range(num_windows):
                    excess[g] += price * max(filled[v, g] - limit[v, g], 0.0)
            for q in range(num_slots):
                relief[slots[q]] += excess[q // per_gpu]
        best = -1e-6
        best_slot = -1
        best_expert = -1
        losing = rem[a, n1] if on_node[a, n1] == 1 else 0.0
        choices = num_slots + num_experts if copies[a] > 1 else num_slots
        for q in range(choices):
            if q < num_slots:
                b = slots[q]
                g2 = q // per_gpu
                n2 = q // per_node
                if g1 == g2 or moved[b] or on_gpu[a, g2] or on_gpu[b, g1]:
                    continue
                change = 0.0
                if n1 != n2:
                    change = losing
                    if on_node[a, n2] == 0:
                        change -= add[a, n2]
                        if on_node[a, n1] == 1:
                            change -= both[a, n1, n2]
                    if on_node[b, n2] == 1:
                        change += rem[b, n2]
                    if on_node[b, n1] == 0:
                        change -= add[b, n1]
                        if on_node[b, n2] == 1:
                            change -= both[b, n2, n1]
                if change - excess[g1] - excess[g2] >= best:
                    continue
                for v in range(num_windows):
                    more = part[v, b, n2] - part[v, a, n1]
                    over1 = filled[v, g1] - limit[v, g1]
                    over2 = filled[v, g2] - limit[v, g2]
                    change += price * (max(over1 + more, 0.0) - max(over1, 0.0))
                    change += price * (max(over2 - more, 0.0) - max(over2, 0.0))
            else:
                b = q - num_slots
                if a == b or moved[b] or on_gpu[b, g1]:
                    continue
                change = losing
                if on_node[b, n1] == 0:
                    change -= add[b, n1]
                if change - relief[b] - excess[g1] >= best:
                    continue
                for v in range(num_windows):
                    left = part[v, a, n1] / (copies[a] - 1)
                    gained = 0.0
                    for g in range(num_gpus):
                        more = 0.0
                        if on_gpu[b, g]:
                            more = -part[v, b, g // gpus_of_node] / (copies[b] + 1)
                            gained -= more
                        if g != g1:
                            if on_gpu[a, g]:
                                more += left
                            over = filled[v, g] - limit[v, g]
                            change += price * (max(over + more, 0.0) - max(over, 0.0))
                    over = filled[v, g1] - limit[v, g1]
                    change += price * (max(over + gained - part[v, a, n1], 0.0) - max(over, 0.0))
            if change < best:
                best = change
                best_slot = q
                best_expert = b
        if best_slot < 0:
            continue
        b = best_expert
        done += 1
        stale = True
        moved[a] = True
        moved[b] = True
        slots[p] = b
        on_node[a, n1] -= 1
        on_node[b, n1] += 1
        if best_slot < num_slots:
            g2 = best_slot // per_gpu
            n2 = best_slot // per_node
            slots[best_slot] = a
            on_gpu[b, g2] -= 1
            on_gpu[a, g2] += 1
            on_node[b, n2] -= 1
            on_node[a, n2] += 1
            for v in range(num_windows):
                of_a = part[v, a, n1]
                of_b = part[v, b, n2]
                filled[v, g1] += of_b - of_a
                filled[v, g2] += of_a - of_b
                part[v, a, n2] = of_a
                part[v, b, n1] = of_b
            on_gpu[a, g1] -= 1
            on_gpu[b, g1] += 1
        else:
            for v in range(num_windows):
                left = part[v, a, n1] / (copies[a] - 1)
                gained = 0.0
                filled[v, g1] -= part[v, a, n1]
                for g in range(num_gpus):
                    if on_gpu[b, g]:
                        given = part[v, b, g // gpus_of_node] / (copies[b] + 1)
                        filled[v, g] -= given
                        gained += given
                    if on_gpu[a, g] and g != g1:
                        filled[v, g] += left
                filled[v, g1] += gained
                for n in range(len(on_node[b])):
                    part[v, a, n] += left
                    part[v, b, n] *= copies[b] / (copies[b] + 1)
                part[v, b, n1] = gained
            on_gpu[a, g1] -= 1
            on_gpu[b, g1] += 1
            copies[a] -= 1
            copies[b] += 1
    return done
