"""The kernels as machine code for compute capability 9.0: what can be known of the fast path where there is no GPU."""

from __future__ import annotations

import json
import os
import platform
import shutil
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
MOST_FOLDERS = 500
"""Of Triton's cache: several hundred megabytes."""


@pytest.fixture
def compiled_before(pytestconfig: pytest.Config) -> Path:
    """Return Triton's cache of earlier runs: what is compiled from the same is read, a minute less.

    Where sources have changed so often that it has become large, it is begun anew.
    """
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("triton")
    if len(list(folder.iterdir())) > MOST_FOLDERS:
        shutil.rmtree(folder)
        folder.mkdir()
    return folder


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton brings its assembler for Linux only")
def test_every_tile_size_compiles_to_tensor_core_code_that_fits(compiled_before: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, SCRIPT],
        env=environment | {"TRITON_CACHE_DIR": str(compiled_before)},
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
