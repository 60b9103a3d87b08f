"""What the system says about this machine: its cores, its memory, its processor and its clock."""

from __future__ import annotations

import os
import re
from pathlib import Path

_MEMORY_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""What a container may use, and uses; cgroup versions 2 and 1."""


def num_cores() -> int:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory_bytes() -> int | None:
    """Return the bytes that programs can still take, container limits included; None where no system call says it."""
    found = re.search(r"^MemAvailable: +([0-9]+) kB$", _text("/proc/meminfo"), re.MULTILINE)
    free = [int(found[1]) * 1024] if found else _physical_bytes()
    for limit_file, usage_file in _MEMORY_LIMITS:
        limit, usage = _text(limit_file).strip(), _text(usage_file).strip()
        if limit.isdecimal() and usage.isdecimal():
            free.append(max(int(limit) - int(usage), 0))
    return min(free, default=0) or None


def _physical_bytes() -> list[int]:
    try:
        return [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, OSError, ValueError):
        return []


def processor_name() -> str:
    """Return the processor's name as the system gives it, else `processor`."""
    found = re.search(r"^model name\s*: *(\S.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return " ".join(found[1].split()) if found else "processor"


def clock_hz() -> float | None:
    """Return the highest clock of the first core, or the present one where only that is said; None where neither is."""
    limit = _text("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").strip()
    if limit.isdecimal():
        return int(limit) * 1e3
    found = re.search(r"^cpu MHz\s*: *([0-9.]+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return float(found[1]) * 1e6 if found and float(found[1]) > 0 else None


def _text(path: str) -> str:
    """Return what a file of the system says; nothing where there is no such file."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
