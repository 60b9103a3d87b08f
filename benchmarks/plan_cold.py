"""Time and memory of a cold `moiety plan` on the reference scenario: a fresh process that writes every file.

    python benchmarks/plan_cold.py [--runs 5]

The interpreter's bytecode is kept in a folder of the benchmark's own, filled by a first run that does not count: an
environment that forbids its cache would have every run compile the sources. Needs Linux or macOS. The bars are 3 s and
300 MB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS_BAR = 3.0
MEGABYTES_BAR = 300.0
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class ColdRun:
    """What one process took from its start to its end."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def cold_run(arguments: Sequence[str], bytecode: str) -> ColdRun:
    """Return what `moiety` with these arguments takes in a process of its own; raise where it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "moiety", *arguments], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, ["moiety", *arguments])
    return ColdRun(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _RSS_UNIT)


def cold_plans(arguments: Sequence[str], runs: int) -> list[ColdRun]:
    """Return `runs` cold runs of `moiety plan`, each into an empty folder."""
    found: list[ColdRun] = []
    with tempfile.TemporaryDirectory() as bytecode:
        for _ in range(1 + runs):
            with tempfile.TemporaryDirectory() as folder:
                found.append(cold_run(["plan", *arguments, "--out", folder], bytecode))
    return found[1:]


def summary(name: str, runs: Sequence[ColdRun], seconds_bar: float, megabytes_bar: float | None) -> str:
    """Return one line a figure: the median, the extremes, and the bar."""
    wall = sorted(each.wall_s for each in runs)
    cpu = statistics.median(each.cpu_s for each in runs)
    peak = max(each.peak_bytes for each in runs) / 1e6
    median = statistics.median(wall)
    lines = [
        f"{name}: {len(runs)} cold runs",
        f"  wall    median {median:.2f} s, {wall[0]:.2f} to {wall[-1]:.2f} s; {_against(median, seconds_bar, 's')}",
        f"  CPU     median {cpu:.2f} s",
        f"  memory  peak {peak:.0f} MB" + (f"; {_against(peak, megabytes_bar, 'MB')}" if megabytes_bar else ""),
    ]
    return "\n".join(lines)


def _against(value: float, bar: float, unit: str) -> str:
    return f"bar {bar:g} {unit}: {'met' if value <= bar else 'MISSED'}"


def num_runs() -> int:
    """Return the number of runs that the command line asks for."""
    parser = argparse.ArgumentParser(description="Time cold runs of `moiety plan`.")
    parser.add_argument("--runs", type=int, default=5, metavar="N")
    runs: int = parser.parse_args().runs
    if runs < 1:
        parser.error("--runs must be at least 1")
    return runs


if __name__ == "__main__":
    print(summary("moiety plan, reference scenario, all files", cold_plans([], num_runs()), SECONDS_BAR, MEGABYTES_BAR))
