"""Time of the search for DeepSeek-V3 on 32 H200: prefill and decode, together and apart.

    python benchmarks/search.py [--runs 5]

First the search alone, in this process; then the whole command, cold, with every file. The bar is 5 s.
"""

from __future__ import annotations

import statistics
import time

from plan_cold import cold_plans, num_runs, summary

from moiety.calibration.catalog import load_calibration
from moiety.cluster.catalog import load_cluster
from moiety.model.catalog import load_catalog_model
from moiety.projection.scenario import Scenario
from moiety.search.options import default_options
from moiety.search.search import search
from moiety.workload.catalog import load_workload

MODEL, CLUSTER, WORKLOAD = "deepseek-v3", "h200x32", "chat"
SECONDS_BAR = 5.0


def searched_s() -> tuple[float, int, int]:
    """Return the seconds of one search, the legal strategies it costed, and the plans with two pools among them."""
    scenario = Scenario(
        load_catalog_model(MODEL), load_cluster(CLUSTER), load_workload(WORKLOAD), "moiety", load_calibration()
    )
    start = time.perf_counter()
    found = search(scenario, default_options(scenario)).summary
    seconds = time.perf_counter() - start
    return seconds, found.num_legal, sum(line.mode == "disaggregated" for line in found.ranking)


if __name__ == "__main__":
    RUNS = num_runs()
    timed = [searched_s() for _ in range(RUNS)]
    median = statistics.median(seconds for seconds, _, _ in timed)
    _, num_legal, num_apart = timed[0]
    verdict = "met" if median <= SECONDS_BAR else "MISSED"
    print(
        f"search, {MODEL} on {CLUSTER}, workload {WORKLOAD}: {num_legal} legal strategies, {num_apart} with two pools"
    )
    print(f"  wall    median of {RUNS}: {median:.2f} s; bar {SECONDS_BAR:g} s: {verdict}")
    command = [MODEL, "--cluster", CLUSTER, "--workload", WORKLOAD]
    print(summary(f"moiety plan {' '.join(command)}, all files", cold_plans(command, RUNS), SECONDS_BAR, None))
