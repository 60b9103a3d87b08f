"""Balance and moves of the control plane on drifting loads, beside static EPLB and EPLB placed anew every window.

    python benchmarks/control_drift.py [--windows 144] [--seed 1] [--trace trace.npz]

Without a trace: 4 layers of 256 experts on 32 GPUs with 288 slots. The mix of two kinds of traffic swings once over the
windows, popularity walks a little, and each expert's load scatters from window to window. With a trace: its tokens in
consecutive windows, on 8 GPUs with an eighth more slots than experts.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np
from trace_option import add_trace_option, trace_of

from moiety.control.apply import apply
from moiety.control.decide import settle
from moiety.control.events import ExpertCounts, Heartbeat, Moved
from moiety.control.policy import Deployment, Policy
from moiety.control.state import initial_state
from moiety.control.working import working_map
from moiety.errors import InputError
from moiety.placement.methods.eplb import eplb_global
from moiety.placement.metrics import balance_of, gpu_loads
from moiety.placement.migration.cost import CopyLinks, settled
from moiety.placement.problem import PlacementProblem
from moiety.workload.routing import windowed

if TYPE_CHECKING:
    from numpy.typing import NDArray

SKEW, SCATTER, WALK = 0.8, 0.1, 0.005
TOKENS = 200_000
MOVES_BAR = 0.05


def drifting(windows: int, seed: int = 1) -> NDArray[np.float64]:
    """Return counts, [windows, layers, experts]."""
    rng = np.random.default_rng(seed)
    one, other = rng.normal(0.0, SKEW, (2, 4, 256))
    found = []
    for at in range(windows):
        one = np.sqrt(1 - WALK) * one + np.sqrt(WALK) * rng.normal(0.0, SKEW, one.shape)
        mix = 0.5 - 0.5 * np.cos(2 * np.pi * at / windows)
        shares = ((1 - mix) * np.exp(one) + mix * np.exp(other)) * np.exp(rng.normal(0.0, SCATTER, one.shape))
        shares /= shares.sum(axis=1, keepdims=True)
        found.append([rng.multinomial(TOKENS, row) for row in shares])
    return np.array(found, dtype=np.float64)


def run(counts: NDArray[np.float64], gpus: int, nodes: int, slots: int) -> None:
    """Print the table; every map is judged on the window after those it was made from."""
    windows, layers, experts = counts.shape

    def problem(loads: NDArray[np.float64]) -> PlacementProblem:
        return PlacementProblem(loads[None], gpus, nodes, slots)

    def judged(slot_map: NDArray[np.int64], loads: NDArray[np.float64]) -> float:
        return float(balance_of(gpu_loads(problem(loads), slot_map), np.ones(gpus)).mean())

    of = Deployment(
        num_ranks=gpus,
        ranks_per_node=gpus // nodes,
        num_experts=experts,
        num_layers=layers,
        most_slots=slots // gpus,
        links=CopyLinks(expert_bytes=44e6, node_bytes_per_s=400e9, network_bytes_per_s=50e9),
        layer_step_s=2e-4,
        step_s=0.05,
        phase="decode",
    )
    static = anew = eplb_global(problem(counts[0]))
    state = initial_state(of, Policy(), static)
    balance: dict[str, list[float]] = {"control plane": [], "EPLB every window": [], "EPLB once": []}
    moves, seconds, began = 0, 0.0, 0
    for at in range(windows):
        if at:
            maps = (working_map(state), anew, static)
            for name, slot_map in zip(balance, maps, strict=True):
                balance[name].append(judged(slot_map, counts[at]))
        now = 60.0 * at
        start = time.perf_counter()
        for rank in range(gpus):
            state = apply(Heartbeat(now, rank, state.epoch, 0, waiting=False), state)
        state, _ = settle(apply(ExpertCounts(now, counts[at]), state), now)
        began = began or (at + 1 if state.pending else 0)
        for move in state.pending:
            state = apply(Moved(now, state.epoch, *move[:4]), state)
        seconds += time.perf_counter() - start
        fresh = settled(problem(counts[at]), anew, eplb_global(problem(counts[at])))
        moves, anew = moves + int((fresh != anew).sum()), fresh
    print(f"{windows} windows, {layers} layers, {experts} experts, {slots} slots, {gpus} GPUs")
    for name, values in balance.items():
        made = {"control plane": state.moves, "EPLB every window": moves, "EPLB once": 0}[name]
        print(
            f"  {name:<18} mean balance {np.mean(values):.4f}  moves a layer and window {made / windows / layers:.2f}"
        )
    ours, theirs = (float(np.mean(balance[name])) for name in ("control plane", "EPLB every window"))
    share = state.moves / moves
    met = ours > theirs and share < MOVES_BAR
    print(
        f"  {share:.1%} of its moves (bar {MOVES_BAR:.0%}), balance {ours - theirs:+.4f}: {'met' if met else 'MISSED'}"
    )
    print(f"  first moves after window {began or 'none'}; {seconds / windows * 1e3:.0f} ms a window")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Balance and moves on drifting loads.")
    parser.add_argument("--windows", type=int, default=144, metavar="N")
    parser.add_argument("--seed", type=int, default=1, help="of the synthetic drift")
    add_trace_option(parser)
    arguments = parser.parse_args()
    routing = trace_of(parser, arguments.trace, "topk")
    if routing is not None:
        try:
            counted = windowed(routing, arguments.windows).counts
        except InputError as error:
            parser.error(str(error))
        run(counted, 8, 2, -(-counted.shape[2] * 9 // 64) * 8)
    else:
        run(drifting(arguments.windows, arguments.seed), 32, 4, 288)
