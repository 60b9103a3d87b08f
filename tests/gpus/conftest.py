"""A machine with GPUs that are none; skipped where no C compiler can build them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.cli.command import moiety
from tests.gpus.fake_gpus import FakeGpu, FakeMachine, build

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to build the fake drivers with")
    folder = tmp_path_factory.mktemp("nvml")
    build(compiler, folder)
    return folder


@pytest.fixture
def machine(library: Path, tmp_path: Path) -> FakeMachine:
    made = FakeMachine(library, tmp_path / "gpus")
    made.set_gpus(FakeGpu(), FakeGpu(temperature=88, reasons=0x24))
    return made


@pytest.fixture(scope="session")
def decode_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a plan that decodes, on devices like the machine's."""
    folder = tmp_path_factory.mktemp("decode")
    done = moiety("plan", "--workload", "reference-decode", "--quiet", "--out", folder)
    assert done.code == 0, done.err
    return folder
