"""Time of the serving simulation, and of predicting a row of measurements in closed form.

    python benchmarks/serving.py

512 and 100,000 requests of 1,024 tokens in and out, 64 in flight, in a closed loop; and the catalogue's rows.
"""

from __future__ import annotations

import time
import tracemalloc

from moiety.projection.serving_simulation import serving_engine
from moiety.sim.arrivals import Lengths, together
from moiety.sim.serving import simulate_serving
from moiety.validation.compare import compare_rows
from moiety.validation.facts import catalog_facts
from moiety.validation.predict import ServingPredictor
from moiety.validation.serving_case import serving_case
from moiety.validation.serving_row import ServingRow

TOKENS, IN_FLIGHT = 1024, 64
BARS = {512: 0.5, 100_000: 30.0}


def simulated(count: int) -> tuple[float, int]:
    """Return the seconds of a simulation, step times included, and the most bytes that a second run held."""
    row = next(each.row for each in catalog_facts().rows if isinstance(each.row, ServingRow))
    case = serving_case(row)
    engine = serving_engine(ServingPredictor().pool(case, case.decode))
    start = time.perf_counter()
    simulate_serving(engine, together(Lengths(TOKENS, TOKENS), count=count), concurrency=IN_FLIGHT)
    seconds = time.perf_counter() - start
    tracemalloc.start()
    simulate_serving(engine, together(Lengths(TOKENS, TOKENS), count=min(count, 10_000)), concurrency=IN_FLIGHT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds, peak


if __name__ == "__main__":
    for number, bar in BARS.items():
        wall, held = simulated(number)
        verdict = "met" if wall <= bar else "MISSED"
        print(
            f"serving simulation, {number:,} requests: {wall:.2f} s; bar {bar:g} s: {verdict}; {held / 1e3:.0f} kB held"
        )
    rows = catalog_facts().rows
    begin = time.perf_counter()
    compare_rows(rows)
    print(f"closed form: {(time.perf_counter() - begin) / len(rows) * 1e3:.1f} ms a row, {len(rows)} rows")
