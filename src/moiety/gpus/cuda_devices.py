"""Which of this machine's GPUs CUDA shows to a run, in its order: rank by rank those that the ranks take.

CUDA_VISIBLE_DEVICES hides and reorders them, and CUDA_DEVICE_ORDER numbers them otherwise than NVML does. So CUDA is
asked, and what both call by the same name is the UUID. `python -m moiety.gpus.cuda_devices` prints them: it is asked in
a process of its own, since one that has initialised CUDA can fork none that uses it.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from uuid import UUID

from moiety.gpus.nvml import GpuError

_DRIVER = "libcuda.so.1"
_NO_DEVICE = 100
"""CUDA's code where no GPU is there, or none is shown."""
_ASKED_S = 120.0
"""For all GPUs to wake up."""


def cuda_uuids() -> tuple[str, ...]:
    """Return the UUIDs of the GPUs that CUDA shows a process with this environment, as NVML writes them.

    Raises GpuError where there is no CUDA driver, or it fails.
    """
    call = [sys.executable, "-P", "-m", "moiety.gpus.cuda_devices"]
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            call, capture_output=True, check=False, text=True, timeout=_ASKED_S
        )
    except subprocess.TimeoutExpired:
        raise GpuError("CUDA", f"the driver does not answer within {_ASKED_S:.0f} s", "TIMEOUT") from None
    if done.returncode:
        why = done.stderr.strip().splitlines()
        raise GpuError("CUDA", why[-1] if why else f"asking ended with {done.returncode}", "UNKNOWN")
    return tuple(done.stdout.split())


def _uuids() -> list[str]:
    """Return them, in a process that may initialise CUDA."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        raise SystemExit(f"this machine has no {_DRIVER}; it comes with NVIDIA's driver") from None
    code = driver.cuInit(0)
    if code == _NO_DEVICE:
        return []
    _check("cuInit", code)
    count = ctypes.c_int()
    _check("cuDeviceGetCount", driver.cuDeviceGetCount(ctypes.byref(count)))
    return [_uuid(driver, number) for number in range(count.value)]


def _uuid(driver: ctypes.CDLL, number: int) -> str:
    device, found = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    _check("cuDeviceGet", driver.cuDeviceGet(ctypes.byref(device), number))
    _check("cuDeviceGetUuid_v2", driver.cuDeviceGetUuid_v2(ctypes.byref(found), device))  # of a part of one: its own
    return f"GPU-{UUID(bytes=bytes(found))}"


def _check(what: str, code: int) -> None:
    if code:
        raise SystemExit(f"{what} returned {code}")


if __name__ == "__main__":
    print(*_uuids(), sep="\n")  # noqa: T201 - it is a program
