"""The compiled loops of the joint solver: what each move would save of the traffic, and a sweep of moves that pay.

They work on one layer. Compiled on first use and cached beside the module, so only `moiety place` and plans with a
routing dump pay for it. Nodes are bits of an integer, so there may be up to `joint.MAX_NODES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from numba import njit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function when it is first called, and keep the result where a folder can be written."""
    try:
        kept = njit(nogil=True, error_model="numpy", cache=True)
        return cast("Callable[..., Any]", kept(function))  # pyright: ignore[reportUnknownMemberType]
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return cast("Callable[..., Any]", njit(nogil=True, error_model="numpy")(function))  # pyright: ignore[reportUnknownMemberType]


@_compiled
def reached(  # noqa: C901 - one loop nest, compiled as one
    held: NDArray[Any], experts: NDArray[Any], distance: NDArray[Any], r: int, start: int
) -> tuple[Any, Any, Any]:
    """Return the nodes that token r at node `start` visits, as bits, the home not among them, and two parts of them.

    The first part would be visited without any one of its experts, the second is for experts with several copies.
    Experts with a copy at home need no node. The nodes that hold an only copy come first; then, for each expert with
    none there, the nearest node that it shares with most that follow it.
    """
    once = twice = chosen = 0
    local = 1 << start
    k = experts.shape[1]
    several = False
    for j in range(k):
        m = held[experts[r, j]]
        if m & local == 0:
            if m & (m - 1):
                several = True
            else:
                twice |= once & m
                once |= m
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
                bit, nearest, n = 0, 1e300, 0
                while m:
                    if m & 1 and distance[start, n] < nearest:
                        nearest = distance[start, n]
                        bit = 1 << n
                    m >>= 1
                    n += 1
                once |= bit
                chosen |= bit
                if shared:
                    twice |= bit
    return once, twice, chosen


@_compiled
def gain_tables(  # noqa: C901, PLR0912, PLR0913, PLR0917 - one loop nest, compiled as one
    held: NDArray[Any],
    experts: NDArray[Any],
    home: NDArray[Any],
    weight: NDArray[Any],
    distance: NDArray[Any],
    add: NDArray[Any],
    rem: NDArray[Any],
    both: NDArray[Any],
    served: NDArray[Any],
) -> float:
    """Return the remote nodes that the tokens reach, weighted, and fill the tables of what moves change of them.

    `held` [experts] has the nodes with a copy as bits. Token r, `weight[r]`, at node `home[r]`, needs `experts[r]`
    (k of them) and visits the nodes of `reached`. `add[e, n]` becomes what a new copy of e on node n saves, `rem[e, a]`
    what losing the copy on node a costs, and `both[e, a, n]` how much less it costs where node n gets a copy at the
    same time. Each is exact for one move of a token's experts, and first-order where two of them move at once.
    `served[e, n]` becomes the weight of the tokens whose expert e, of several copies, node n serves, the nodes at hand
    taking turns. `distance` is 1 between all nodes.
    """
    total = 0.0
    for r in range(experts.shape[0]):
        start = home[r]
        local = 1 << start
        w = weight[r]
        once, twice, chosen = reached(held, experts, distance, r, start)
        bits = once
        while bits:
            total += w
            bits &= bits - 1
        reach = once | local
        for j in range(experts.shape[1]):
            e = experts[r, j]
            m = held[e]
            hit = m & reach
            lone = m & (m - 1) == 0
            if not lone:
                hits, bits = 0, local if m & local else hit
                while bits:
                    hits += 1
                    bits &= bits - 1
                bits, n = local if m & local else hit, 0
                while bits:
                    if bits & 1:
                        served[e, n] += w / hits
                    bits >>= 1
                    n += 1
                if hit & (hit - 1):
                    continue  # other copies are at hand
            a, bits = 0, hit >> 1
            while bits:
                bits >>= 1
                a += 1
            sole = hit & (local | twice) == 0 and (lone or hit & chosen != 0)
            if not sole:
                rem[e, a] += w
            bits, n = reach & ~hit if sole else reach, 0
            while bits:
                if bits & 1:
                    if sole:
                        add[e, n] += w
                    else:
                        both[e, a, n] += w
                bits >>= 1
                n += 1
    return total


@_compiled
def uneven_gain_tables(  # noqa: C901, PLR0912, PLR0913, PLR0917 - one loop nest, compiled as one
    held: NDArray[Any],
    experts: NDArray[Any],
    home: NDArray[Any],
    weight: NDArray[Any],
    distance: NDArray[Any],
    add: NDArray[Any],
    rem: NDArray[Any],
    both: NDArray[Any],
    served: NDArray[Any],
) -> float:
    """Return what `gain_tables` does where `distance` [nodes, nodes] differs: distances are summed, not nodes."""
    total = 0.0
    num_nodes = add.shape[1]
    for r in range(experts.shape[0]):
        start = home[r]
        local = 1 << start
        once, twice, chosen = reached(held, experts, distance, r, start)
        farthest = 0.0
        for n in range(num_nodes):
            farthest = max(farthest, distance[start, n])
            if once >> n & 1:
                total += weight[r] * distance[start, n]
        for j in range(experts.shape[1]):
            e = experts[r, j]
            m = held[e]
            hit = m & (once | local)
            lone = m & (m - 1) == 0
            sole = hit & (local | twice) == 0 and (lone or hit & chosen != 0) and hit & (hit - 1) == 0
            without = once | local
            if sole:
                without &= ~hit
            turns = local if m & local else hit
            hits = 0
            for n in range(num_nodes):
                hits += turns >> n & 1
            now = 0.0 if m & without else farthest  # what the nearest copy costs
            for n in range(num_nodes):
                if turns >> n & 1:
                    served[e, n] += weight[r] / hits
                if m >> n & 1 and distance[start, n] < now:
                    now = distance[start, n]
            for n in range(num_nodes):
                cost = 0.0 if without >> n & 1 else distance[start, n]
                add[e, n] += weight[r] * max(now - cost, 0.0)
            for a in range(num_nodes):
                if m >> a & 1:
                    left = m & ~(1 << a)
                    then = 0.0 if left & without else farthest
                    for n in range(num_nodes):
                        if left >> n & 1 and distance[start, n] < then:
                            then = distance[start, n]
                    rem[e, a] += weight[r] * (then - now)
                    for n in range(num_nodes):
                        cost = 0.0 if without >> n & 1 else distance[start, n]
                        both[e, a, n] += weight[r] * (then - max(now - cost, 0.0) - min(then, cost))
    return total


@_compiled
def over_more(over: float, more: float) -> float:
    """Return how much more lies above a limit when a load `over` it (less than 0: below) grows by `more`."""
    return max(over + more, 0.0) - max(over, 0.0)


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
    moved: NDArray[Any],
    excess: NDArray[Any],
    relief: NDArray[Any],
    most: int,
) -> int:
    """Make at most `most` moves that pay by the tables, in place, and return how many: each expert moves once.

    A move swaps the experts of two slots on different GPUs, or gives the slot of a redundant copy to another expert.
    It pays when what it saves of traffic exceeds `price` times the load that it pushes above `limit` [windows, GPUs].
    `slots` [slots] has each slot's expert, `on_gpu` [experts, GPUs] and `on_node` [experts, nodes] count copies, `part`
    [windows, experts, nodes] is the work of one copy of an expert on a node in units of a GPU's mean, `filled`
    [windows, GPUs] that of the GPUs. A moved copy takes its work along; one that goes leaves its work to the others,
    and a new one takes an even share of theirs. No GPU gets a second copy. The last three arrays are room to work in:
    `moved` [experts], all False, what each GPU's load above its limit costs, `excess` [GPUs], and what the GPUs that
    hold an expert cost, `relief` [experts]: no more can be saved by another copy of it.
    """
    num_slots, num_experts = len(slots), len(copies)
    num_windows, num_gpus = filled.shape
    per_gpu = num_slots // num_gpus
    num_nodes = add.shape[1]
    per_node = num_slots // num_nodes
    gpus_of_node = num_gpus // num_nodes
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
            for e in range(num_experts):
                relief[e] = 0.0
            for g in range(num_gpus):
                excess[g] = 0.0
                for v in range(num_windows):
                    over = filled[v, g] - limit[v, g]
                    excess[g] += price * over if over > 0.0 else 0.0
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
                    change += price * over_more(over1, more) + price * over_more(over2, -more)
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
                            change += price * over_more(over, more)
                    over = filled[v, g1] - limit[v, g1]
                    change += price * over_more(over, gained - part[v, a, n1])
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
                for n in range(num_nodes):
                    part[v, a, n] += left
                    part[v, b, n] *= copies[b] / (copies[b] + 1)
                part[v, b, n1] = gained
            on_gpu[a, g1] -= 1
            on_gpu[b, g1] += 1
            copies[a] -= 1
            copies[b] += 1
    return done
