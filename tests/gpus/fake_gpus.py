"""The tests' own NVML and CUDA driver: C libraries built on the spot, with their GPUs in a file."""

from __future__ import annotations

import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCES = {"libnvidia-ml.so.1": "fake_nvml.c", "libcuda.so.1": "fake_cuda.c"}
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
    """A folder with the libraries, which the loader finds before the driver's, and the file with their GPUs."""

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


def uuid(index: int) -> str:
    """Return the UUID of the GPU that is NVML's number `index`."""
    return f"GPU-fa4e0000-0000-0000-0000-{index:012}"


def build(compiler: str, folder: Path) -> None:
    """Build the libraries under the driver's names."""
    for name, source in SOURCES.items():
        path = Path(__file__).with_name(source)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", folder / name, path], check=True)
