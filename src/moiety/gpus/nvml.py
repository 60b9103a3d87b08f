"""NVML behind one small interface: readings, locked clocks, power caps.

It is `nvidia-ml-py` on whatever libnvidia-ml.so.1 the machine offers. Reading takes no rights; setting takes root.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from moiety.errors import MoietyError

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import ModuleType

_SAYS = {
    "LIBRARY_NOT_FOUND": "this machine has no libnvidia-ml.so.1; it comes with NVIDIA's driver",
    "DRIVER_NOT_LOADED": "NVIDIA's driver is not running; `nvidia-smi` says more",
    "NO_PERMISSION": "the driver refuses it: setting limits takes root, in a container CAP_SYS_ADMIN too",
    "NOT_SUPPORTED": "this GPU or its driver does not offer it",
    "GPU_IS_LOST": "the GPU has fallen off the bus; the machine has to be restarted",
    "RESET_REQUIRED": "the GPU must be reset first: nvidia-smi --gpu-reset",
    "FUNCTION_NOT_FOUND": "the driver is too old for it",
    "INVALID_ARGUMENT": "the driver takes no such value",
}
"""NVML's return codes in words; others in NVML's own."""
_UNREADABLE = frozenset({"NOT_SUPPORTED", "FUNCTION_NOT_FOUND"})
_THROTTLES = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}
"""Of NVML's clock event reasons those that slow a busy GPU down; idling and clocks that were asked for do not count."""
_HEAT = frozenset({0x08, 0x20, 0x40})
_REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
_TEMPERATURE = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
"""Newer and older names of the same."""
_SM_CLOCK = 1
_HZ, _WATT = 1_000_000, 1_000
"""NVML speaks in MHz and milliwatts."""


class GpuError(MoietyError):
    """The driver or a GPU cannot do what was asked; `code` is NVML's name for why."""

    def __init__(self, what: str, why: str, code: str) -> None:
        self.code = code
        super().__init__(f"{what}: {why}")


@dataclass(frozen=True, slots=True)
class Reading:
    """One GPU now; None where it cannot be read."""

    index: int
    uuid: str
    name: str
    power_w: float | None
    sm_clock_hz: float | None
    temperature_c: float | None
    throttles: tuple[str, ...]
    is_hot: bool
    """Whether heat slows it down; a power cap does not count."""
    memory_used_bytes: int | None
    memory_bytes: int | None
    busy_share: float | None
    """Of the last sampling period, with a kernel running."""


@dataclass(frozen=True, slots=True)
class PowerRange:
    """The power limit of a GPU, in watts, and what it may be."""

    now_w: float
    least_w: float
    most_w: float


class Gpus:
    """The GPUs that the driver shows, by index from 0; `open_gpus` makes it."""

    def __init__(self, nvml: ModuleType) -> None:
        self._nvml = nvml
        count: int = self._call("the GPUs", "nvmlDeviceGetCount")
        self._handles = [self._call(f"GPU {index}", "nvmlDeviceGetHandleByIndex", index) for index in range(count)]
        self.uuids: tuple[str, ...] = tuple(self._ask(index, "nvmlDeviceGetUUID") for index in range(count))

    def __len__(self) -> int:
        return len(self._handles)

    def name(self, index: int) -> str:
        """Return the product name."""
        return self._ask(index, "nvmlDeviceGetName")

    def read(self, index: int) -> Reading:
        """Return what can be read of a GPU now; raise GpuError where it is lost."""
        reasons: int = self._read(index, _REASONS) or 0
        power = self._read(index, ("nvmlDeviceGetPowerUsage",))
        clock = self._read(index, ("nvmlDeviceGetClockInfo",), _SM_CLOCK)
        memory = self._read(index, ("nvmlDeviceGetMemoryInfo",))
        busy = self._read(index, ("nvmlDeviceGetUtilizationRates",))
        return Reading(
            index=index,
            uuid=self.uuids[index],
            name=self.name(index),
            power_w=None if power is None else power / _WATT,
            sm_clock_hz=None if clock is None else float(clock) * _HZ,
            temperature_c=self._read(index, _TEMPERATURE, 0),
            throttles=tuple(name for bit, name in _THROTTLES.items() if reasons & bit),
            is_hot=any(reasons & bit for bit in _HEAT),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_bytes=None if memory is None else int(memory.total),
            busy_share=None if busy is None else busy.gpu / 100,
        )

    def highest_clock_hz(self, index: int) -> float:
        """Return the highest SM clock that can be locked."""
        return float(self._ask(index, "nvmlDeviceGetMaxClockInfo", _SM_CLOCK)) * _HZ

    def lock_clock(self, index: int, clock_hz: float) -> None:
        """Lock the SM clock; the driver takes the nearest one that the GPU has."""
        megahertz = round(clock_hz / _HZ)
        self._ask(index, "nvmlDeviceSetGpuLockedClocks", megahertz, megahertz)

    def unlock_clock(self, index: int) -> None:
        """Give the SM clock back to the GPU. What was locked before cannot be read, so it cannot be put back."""
        self._ask(index, "nvmlDeviceResetGpuLockedClocks")

    def power_range(self, index: int) -> PowerRange:
        """Return the power limit and its bounds."""
        least, most = self._ask(index, "nvmlDeviceGetPowerManagementLimitConstraints")
        now: int = self._ask(index, "nvmlDeviceGetPowerManagementLimit")
        return PowerRange(now / _WATT, least / _WATT, most / _WATT)

    def cap_power(self, index: int, power_w: float) -> None:
        """Set the power limit."""
        self._ask(index, "nvmlDeviceSetPowerManagementLimit", round(power_w * _WATT))

    def _read(self, index: int, names: tuple[str, ...], *arguments: int) -> Any:  # noqa: ANN401 - NVML's own structures
        """Return what the first of the functions that the driver has says; None where none can be read."""
        for name in names:
            if not hasattr(self._nvml, name):  # of a later release of nvidia-ml-py
                continue
            try:
                return self._ask(index, name, *arguments)
            except GpuError as error:
                if error.code not in _UNREADABLE:
                    raise
        return None

    def _ask(self, index: int, name: str, *arguments: int) -> Any:  # noqa: ANN401 - likewise
        return self._call(f"GPU {index}: {name}", name, self._handles[index], *arguments)

    def _call(self, what: str, name: str, *arguments: object) -> Any:  # noqa: ANN401 - likewise
        return call(self._nvml, what, name, *arguments)


@contextmanager
def open_gpus() -> Generator[Gpus]:
    """Give the GPUs of this machine; raise GpuError where there is no driver, or none that answers."""
    try:
        nvml = import_module("pynvml")
    except ModuleNotFoundError:
        why = "nvidia-ml-py is not installed; pip install 'moiety[control]'"
        raise GpuError("NVML", why, "LIBRARY_NOT_FOUND") from None
    call(nvml, "NVML", "nvmlInitWithFlags", 0)
    try:
        yield Gpus(nvml)
    finally:
        nvml.nvmlShutdown()


def call(nvml: ModuleType, what: str, name: str, *arguments: object) -> Any:  # noqa: ANN401 - NVML's own structures
    """Return what an NVML function says; raise GpuError with the reason in words."""
    try:
        return getattr(nvml, name)(*arguments)
    except nvml.NVMLError as error:
        code = _code(nvml, error.value)
        raise GpuError(what, _SAYS.get(code, str(error)), code) from None


def _code(nvml: ModuleType, value: int) -> str:
    """Return NVML's name of a return code, without its prefix."""
    prefix = "NVML_ERROR_"
    names = (name for name in dir(nvml) if name.startswith(prefix) and getattr(nvml, name) == value)
    return next(names, f"code {value}").removeprefix(prefix)
