"""Balance and time of our placement beside EPLB's, on loads as skewed as DeepSeek-V3's.

    OMP_NUM_THREADS=1 python benchmarks/placement_balance.py [--runs 5] [--seed 0] [--peer PATH]

58 layers of 256 experts drawn from lognormal laws, kept where the coefficient of variation is .73 to 1.07 and the
hottest expert has 5.6 to 8.1 times the mean: the ranges measured on DeepSeek-V3. `--peer` names the published
`eplb.py` (github.com/deepseek-ai/EPLB; it needs torch), which then runs on the same loads. Balance is mean over max of
the GPUs' loads: its mean over the layers, and the worst layer. A twin is a slot with a second copy on one GPU.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moiety.placement.methods.balance import balance, peaks
from moiety.placement.methods.eplb import eplb_global
from moiety.placement.problem import PlacementProblem

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.placement.methods.table import Method
    from moiety.placement.problem import Loads, SlotMap

LAYERS, EXPERTS = 58, 256
CASES = ((288, 32, 0.999), (288, 72, 0.997), (320, 64, 0.999), (384, 128, 0.996))
"""Slots, GPUs, and the bar of the mean balance."""


def skewed_counts(seed: int) -> Loads:
    """Return tokens of each expert, [1, layers, experts]."""
    random = np.random.default_rng(seed)
    kept: list[Loads] = []
    while len(kept) < LAYERS:
        load = random.lognormal(0, random.uniform(0.68, 0.88), EXPERTS)
        load /= load.mean()
        if 0.73 <= load.std() <= 1.07 and 5.6 <= load.max() <= 8.1:  # noqa: PLR2004 - the ranges in the docstring
            kept.append(np.round(load * 1e4))
    return np.array(kept)[None]


def published(path: Path) -> Method:
    """Return the published EPLB at `path`, global policy, as a method of ours."""
    spec = importlib.util.spec_from_file_location("published_eplb", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch = importlib.import_module("torch")

    def place(problem: PlacementProblem) -> SlotMap:
        loads = torch.from_numpy(problem.counts.sum(axis=0))
        slots = module.rebalance_experts(loads, problem.num_slots, 1, 1, problem.num_gpus)[0]
        return slots.numpy()

    return place


def timed(method: Method, problem: PlacementProblem, runs: int) -> tuple[SlotMap, float]:
    """Return the map, and the median seconds of `runs` runs after a first that warms up."""
    slots = method(problem)
    seconds: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        slots = method(problem)
        seconds.append(time.perf_counter() - start)
    return slots, statistics.median(seconds)


def twins(slots: SlotMap, num_gpus: int) -> int:
    """Return how many slots hold a second copy of an expert on one GPU, all layers together."""
    held = np.sort(slots.reshape(slots.shape[0], num_gpus, -1), axis=2)
    return int((held[:, :, 1:] == held[:, :, :-1]).sum())


def main() -> None:
    """Print a line for each method and case."""
    parser = argparse.ArgumentParser(description="Compare our balance with EPLB's.")
    parser.add_argument("--runs", type=int, default=5, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer", type=Path, metavar="PATH", help="the published eplb.py")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    if options.peer is not None and not options.peer.is_file():
        parser.error(f"--peer {options.peer}: no such file")
    methods: dict[str, Callable[[PlacementProblem], SlotMap]] = {"balance": balance, "eplb-global": eplb_global}
    if options.peer is not None:
        methods["published EPLB"] = published(options.peer)
    counts = skewed_counts(options.seed)
    print(f"{LAYERS} layers x {EXPERTS} experts, seed {options.seed}, median of {options.runs} runs")
    for slots, gpus, bar in CASES:
        problem = PlacementProblem(counts, gpus, 1, slots)
        for name, method in methods.items():
            placed, seconds = timed(method, problem, options.runs)
            even = 1 / (gpus * peaks(problem, problem.shares(), placed))
            verdict = "" if name != "balance" else f"; bar {bar:g}: {'met' if even.mean() >= bar else 'MISSED'}"
            figures = f"balance {even.mean():.5f} (worst layer {even.min():.5f}), {twins(placed, gpus):3d} twins"
            print(f"  {slots} slots on {gpus:3d} GPUs  {name:<14}  {figures}, {seconds:.3f} s{verdict}")


if __name__ == "__main__":
    main()
