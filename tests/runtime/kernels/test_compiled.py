"""The kernels as machine code for compute capability 9.0: what can be known of the fast path where there is no GPU."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels are Triton's")

SCRIPT = Path(__file__).with_name("compiled.py")
VARIANTS = ("numbers", "numbers, gpt-oss", "codes", "codes in cut blocks", "codes, gpt-oss")
SHARED_BYTES = 227 * 1024
"""That a program may have on compute capability 9.0."""


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton brings its assembler for Linux only")
def test_every_tile_size_compiles_to_tensor_core_code_that_fits(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, SCRIPT],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {(each["kernel"], each["variant"]) for each in found} == set(product(("_gate_up", "_down"), VARIANTS))
    for each in found:
        assert each["tensor_cores"], each
        assert each["copies_of_tiles"] == each["constants"]["TMA"], each
        assert each["copies_of_16_bytes"] or each["constants"]["TMA"], each
        assert each["stack_bytes"] == 0, f"spilled: {each}"
        assert each["shared_bytes"] <= SHARED_BYTES, each
