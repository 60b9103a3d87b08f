"""Cross-node traffic and balance of our placement beside EPLB's, on tokens that neither has seen, and its time.

    python benchmarks/placement_traffic.py [--trace FILE] [--splits 3] [--runs 3]

Quality: half of a trace's sequences are planned on, the other half judged: remote nodes per token, homes uniform, and
balance with copies sharing evenly. `--trace` names a routing dump with `topk` and `sequence`; without it the trace is
synthetic, with the skew, co-activation, persistence and drift of gpt-oss-20b's. EPLB (ours, the same maps as the
published one up to ties) is judged with copies taken evenly, as it is used, and under our serving rule.

Time: 58 layers of 256 experts on 320 slots, 64 GPUs, 8 nodes, 4,096 synthetic tokens, warm; and what a first
`moiety place` pays for compilation more than the second, in processes of their own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from trace_option import add_trace_option, trace_of

from moiety.placement.methods.eplb import eplb_global
from moiety.placement.methods.joint import joint
from moiety.placement.metrics import measure
from moiety.placement.problem import placement_problem
from moiety.workload.routing import by_sequences
from moiety.workload.routing_file import npz_bytes
from moiety.workload.synthetic_routing import RoutingSize, RoutingTargets, synthesize_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.placement.problem import PlacementProblem, SlotMap
    from moiety.workload.routing import Routing

REDUNDANCIES = (0.125, 0.25)
MACHINES = ((2, 1), (2, 2), (4, 1), (4, 2), (8, 1))
"""Nodes, and GPUs of each."""
BAR, BALANCE_BAR, SECONDS_BAR, COMPILE_BAR_S = 0.30, 0.01, 0.5, 2.0
MOST_JUDGED = 20_000
"""Unseen tokens that are judged."""


def synthetic_trace() -> Routing:
    """Return 12 layers of 32 experts, top-4, in 400 sequences."""
    size = RoutingSize(num_layers=12, num_experts=32, top_k=4, num_tokens=60_000, num_sequences=400)
    return synthesize_from(RoutingTargets(), size, seed=0)


def halves(trace: Routing, seed: int) -> tuple[Routing, Routing]:
    """Return the tokens of one half of the sequences, and evenly spaced ones of the other."""
    assert trace.sequence is not None, "the trace says which sequence a token is of"
    every = np.unique(trace.sequence)
    mixed = np.random.default_rng(seed).permutation(every)
    seen, unseen = (by_sequences(trace, part) for part in np.array_split(mixed, 2))
    assert unseen.topk is not None, "the trace has tokens"
    step = -(-unseen.topk.shape[1] // MOST_JUDGED)
    return seen, replace(unseen, topk=unseen.topk[:, ::step])


def judged(problem: PlacementProblem, slots: SlotMap) -> tuple[float, float, float]:
    """Return remote nodes per token with copies taken evenly and by our rule, and the balance."""
    metrics = measure(problem, slots)
    assert metrics.traffic is not None, "tokens are known"
    return metrics.traffic.even.remote_nodes, metrics.traffic.cover.remote_nodes, metrics.gpu_balance.mean


def quality(trace: Routing, splits: int) -> None:
    """Print how far below EPLB's our remote nodes are on unseen sequences, and what that costs in balance."""
    print(f"unseen sequences, mean of {splits} splits; bar: >= {BAR:.0%} below EPLB, balance within {BALANCE_BAR}")
    print("nodes GPUs slots   EPLB even  EPLB, our rule  ours  below even  below rule  balance EPLB  ours  seconds")
    below: list[float] = []
    for redundancy in REDUNDANCIES:
        for nodes, gpus_of_node in MACHINES:
            gpus = nodes * gpus_of_node
            slots = round(trace.num_experts * (1 + redundancy))
            if slots % gpus:
                continue
            rows = [_row(trace, seed, gpus, nodes, slots) for seed in range(splits)]
            even, ruled, ours, balance, our_balance, seconds = (
                statistics.mean(each) for each in zip(*rows, strict=True)
            )
            below.append(1 - ours / even)
            print(
                f"{nodes:5} {gpus:4} {slots:5} {even:11.3f} {ruled:15.3f} {ours:5.3f} {1 - ours / even:11.1%} "
                f"{1 - ours / ruled:11.1%} {balance:13.4f} {our_balance:.4f} {seconds:7.2f}"
            )
    print(f"mean below EPLB with even copies: {statistics.mean(below):.1%}")


def _row(trace: Routing, seed: int, gpus: int, nodes: int, slots: int) -> tuple[float, ...]:
    seen, unseen = halves(trace, seed)
    planned, served = (
        placement_problem(part, num_gpus=gpus, num_nodes=nodes, num_slots=slots) for part in (seen, unseen)
    )
    start = time.perf_counter()
    ours = joint(planned)
    seconds = time.perf_counter() - start
    even, ruled, balance = judged(served, eplb_global(planned))
    _, our_nodes, our_balance = judged(served, ours)
    return even, ruled, our_nodes, balance, our_balance, seconds


def warm(runs: int) -> None:
    """Print the seconds of a whole plan of DeepSeek-V3's size, balance and traffic."""
    size = RoutingSize(num_layers=58, num_experts=256, top_k=8, num_tokens=4096, num_sequences=64)
    trace = synthesize_from(RoutingTargets(), size, seed=0)
    problem = placement_problem(trace, num_gpus=64, num_nodes=8, num_slots=320)
    taken = {name: _median_s(method, problem, runs) for name, method in (("joint", joint), ("EPLB", eplb_global))}
    even, ruled, balance = judged(problem, eplb_global(problem))
    _, ours, our_balance = judged(problem, joint(problem))
    print(f"58 x 256 experts, 320 slots, warm: {taken['joint']:.3f} s (bar {SECONDS_BAR}); EPLB {taken['EPLB']:.3f} s")
    print(
        f"  remote nodes {ours:.3f}, EPLB {even:.3f} with even copies, {ruled:.3f} by our rule; "
        f"balance {our_balance:.4f}, EPLB {balance:.4f}"
    )


def _median_s(method: Callable[[PlacementProblem], SlotMap], problem: PlacementProblem, runs: int) -> float:
    method(problem)
    taken: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        method(problem)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def cold() -> None:
    """Print what the first `moiety place` in a fresh installation pays for compiling."""
    trace = synthesize_from(RoutingTargets(), RoutingSize(1, 16, 2, 400, 8), seed=0)
    assert trace.topk is not None, "the trace has tokens"
    with TemporaryDirectory() as folder:
        file = Path(folder, "trace.npz")
        file.write_bytes(npz_bytes({"topk": trace.topk}))
        command = [sys.executable, "-m", "moiety", "place", str(file), "--gpus", "4", "--nodes", "2", "--quiet"]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(Path(folder, "cache"))}
        taken: list[float] = []
        for _ in range(2):
            start = time.perf_counter()
            subprocess.run(command, env=environment, check=True, capture_output=True)
            taken.append(time.perf_counter() - start)
    first, second = taken
    print(f"cold `moiety place`: first {first:.2f} s, then {second:.2f} s; compiling {first - second:.2f} s", end=" ")
    print(f"(bar {COMPILE_BAR_S} s)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Traffic, balance and time of the joint placement.")
    add_trace_option(parser)
    parser.add_argument("--splits", type=int, default=3, metavar="N")
    parser.add_argument("--runs", type=int, default=3, metavar="N")
    options = parser.parse_args()
    asked = trace_of(parser, options.trace, "topk", "sequence")
    cold()
    warm(options.runs)
    quality(asked or synthetic_trace(), options.splits)
