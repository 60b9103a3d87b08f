"""Balance after 0, 8, 16 and 32 moves a layer from a placement for other loads, and the seconds it takes to find them.

    python benchmarks/placement_migration.py [--runs 3]

DeepSeek-V3's shape: 58 layers of 256 experts, 288 slots on 32 GPUs. The loads are synthetic, each layer's within the
skew published for that model (max over mean 5.6 to 8.1, coefficient of variation .73 to 1.07), in two kinds of drift:
all experts somewhat, or some completely. The placement made from scratch shows what balance without a limit costs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

import numpy as np

from moiety.placement.methods.balance import balance
from moiety.placement.metrics import balance_of, gpu_loads
from moiety.placement.migration.cost import CopyLinks, migration_cost, settled
from moiety.placement.migration.migration import migrate
from moiety.placement.problem import PlacementProblem

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAYERS, EXPERTS, SLOTS, GPUS, NODES = 58, 256, 288, 32, 4
BARS = {8: 0.888, 16: 0.945, 32: 0.978}
SECONDS_BAR = 1.0
SKEW, SPREAD = (5.6, 8.1), (0.73, 1.07)
LINKS = CopyLinks(expert_bytes=44e6, node_bytes_per_s=400e9, network_bytes_per_s=50e9)
DRIFTS = {"all experts drift": (0.0, 0.65), "a fifth of the experts change": (0.2, 0.95)}


def drifting_loads(changed: float, correlation: float, seed: int = 0) -> NDArray[np.float64]:
    """Return lognormal loads before and after a drift, [2, layers, experts], each layer of a published skew.

    A share `changed` of the experts draws a new load, the others' logarithms keep this correlation.
    """
    random = np.random.default_rng(seed)
    found: list[NDArray[np.float64]] = []
    while len(found) < LAYERS:
        before, noise, new = random.normal(size=(3, EXPERTS))
        after = correlation * before + np.sqrt(1 - correlation**2) * noise
        after = np.where(random.random(EXPERTS) < changed, new, after)
        pair = np.exp(random.uniform(0.65, 0.87) * np.stack([before, after]))
        pair *= EXPERTS / pair.sum(axis=1, keepdims=True)
        peak, spread = pair.max(axis=1), pair.std(axis=1)
        if SKEW[0] <= peak.min() and peak.max() <= SKEW[1] and SPREAD[0] <= spread.min() and spread.max() <= SPREAD[1]:
            found.append(pair)
    return np.stack(found, axis=1)


def problem_of(loads: NDArray[np.float64]) -> PlacementProblem:
    """Return the problem of placing loads [layers, experts]."""
    return PlacementProblem(loads[None], GPUS, NODES, SLOTS)


def show(name: str, values: NDArray[np.float64], extra: str = "") -> None:
    """Print one row: mean and worst balance."""
    print(f"  {name:<26} mean {values.mean():.4f}  worst layer {values.min():.4f}{extra}")


def run(name: str, changed: float, correlation: float, runs: int) -> None:
    """Print the table of one kind of drift."""
    loads = drifting_loads(changed, correlation)
    previous = balance(problem_of(loads[0]))
    problem = problem_of(loads[1])
    print(f"{name}:")
    show("0 moves", balance_of(gpu_loads(problem, previous), problem.speed())[0])
    for most, bar in BARS.items():
        found, seconds = migrate(problem, previous, max_moves=most), list[float]()
        for _ in range(runs):
            start = time.perf_counter()
            migrate(problem, previous, max_moves=most)
            seconds.append(time.perf_counter() - start)
        cost = migration_cost(problem, previous, found.slot_map, LINKS)
        mean = found.balance_after.mean()
        extra = f"  {statistics.median(seconds):.2f} s  copies take {cost.time_s * 1e3:.0f} ms"
        extra += f"  bar {bar}: {'met' if mean >= bar else 'MISSED'}"
        show(f"{most} moves", found.balance_after, extra)
    again = settled(problem, previous, balance(problem))
    moves = (again != previous).sum(axis=1)
    cost = migration_cost(problem, previous, again, LINKS)
    extra = f"  {moves.mean():.0f} moves a layer  copies take {cost.time_s * 1e3:.0f} ms"
    show("from scratch", balance_of(gpu_loads(problem, again), problem.speed())[0], extra)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Balance and time of migrations.")
    parser.add_argument("--runs", type=int, default=3, metavar="N")
    RUNS = parser.parse_args().runs
    print(f"seconds bar {SECONDS_BAR:g}; {LAYERS} layers, {EXPERTS} experts, {SLOTS} slots, {GPUS} GPUs")
    for title, (share, rho) in DRIFTS.items():
        run(title, share, rho, RUNS)
