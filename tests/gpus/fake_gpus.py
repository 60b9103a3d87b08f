"""The tests' own NVML: a C library built on the spot, with its GPUs in a file."""

from __future__ import annotations

import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_nvml.c")
_GPU = struct.Struct("8I")


@dataclass(frozen=True, slots=True)
class FakeGpu:
    """One GPU as the library keeps it, in NVML's units."""

    limit_mw: int = 650_000
    least_mw: int = 200_000
    most_mw: int = 700_000
    locked_mhz: int = 0
    highest_mhz: int = 1980
    power_mw: int = 321_000
    temperature: int = 61
    reasons: int = 0


@dataclass(frozen=True, slots=True)
class FakeMachine:
    """A folder with the library, which the loader finds before the driver's, and the file with its GPUs."""

    folder: Path
    state: Path

    def set_gpus(self, *gpus: FakeGpu) -> None:
        """Put these GPUs into the machine."""
        fields = FakeGpu.__slots__
        self.state.write_bytes(b"".join(_GPU.pack(*(getattr(gpu, name) for name in fields)) for gpu in gpus))

    def gpus(self) -> list[FakeGpu]:
        """Return the GPUs as they are now."""
        return [FakeGpu(*found) for found in _GPU.iter_unpack(self.state.read_bytes())]

    def env(self, **more: str) -> dict[str, str]:
        """Return the environment of a process on this machine."""
        found = {"LD_LIBRARY_PATH": str(self.folder), "FAKE_NVML_STATE": str(self.state)}
        return os.environ | found | more


def build(compiler: str, folder: Path) -> None:
    """Build the library under the driver's name."""
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", target, SOURCE], check=True)
