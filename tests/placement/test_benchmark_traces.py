"""Benchmarks that take a routing dump say in one message what is wrong with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moiety.workload.routing_file import npz_bytes

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("script", "name", "words"),
    [
        ("control_drift.py", "none.npz", "none.npz: there is no such file"),
        ("placement_reference.py", "none.npz", "none.npz: there is no such file"),
        ("placement_traffic.py", "none.npz", "none.npz: there is no such file"),
        ("placement_traffic.py", "text.npz", "text.npz"),
        ("placement_traffic.py", "counts.npz", "counts.npz: topk: is missing"),
    ],
)
def test_a_trace_that_cannot_be_used_is_one_message(script: str, name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "counts.npz").write_bytes(npz_bytes({"counts": np.ones((2, 8))}))
    command = [sys.executable, str(BENCHMARKS / script), "--trace", str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
