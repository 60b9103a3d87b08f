"""Quantities with units, as people write them in files: `64 GB`, `600 GB/s`, `400 TFLOPS`, `1.8 GHz`, `5 us`."""

from __future__ import annotations

import math
import re
from typing import Literal

from moiety.errors import InputError, nearest

Dimension = Literal["bytes", "bytes_per_s", "flops_per_s", "s", "hz", "w"]

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def _units() -> dict[Dimension, dict[str, float]]:
    byte = {f"{prefix}B": scale for prefix, scale in {**_DECIMAL, **_BINARY}.items()}
    bit = {f"{prefix}bit": scale / 8 for prefix, scale in _DECIMAL.items()}
    operations = ("FLOPS", "FLOP/s", "OPS")  # OPS: as datasheets write integer rates
    return {
        "bytes": byte,
        "bytes_per_s": {f"{unit}/s": scale for unit, scale in {**byte, **bit}.items()},
        "flops_per_s": {f"{prefix}{unit}": scale for unit in operations for prefix, scale in _DECIMAL.items()},
        "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0},
        "hz": {f"{prefix}Hz": scale for prefix, scale in _DECIMAL.items()},
        "w": {"W": 1.0, "kW": 1e3, "mW": 1e-3},
    }


UNITS = _units()
EXAMPLES: dict[Dimension, str] = {
    "bytes": "80 GB or 80 GiB",
    "bytes_per_s": "900 GB/s or 400 Gbit/s",
    "flops_per_s": "989 TFLOPS",
    "s": "50 ms",
    "hz": "1.98 GHz",
    "w": "700 W",
}
_QUANTITY = re.compile(
    r"\s*([-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z/]+)\s*"
)
_HUGE = 1e300  # beyond any physical quantity


def parse_quantity(
    value: object, dimension: Dimension, *, field: str, minimum: float = 0.0, zero: bool = False
) -> float:
    """Return `value` in the base unit of `dimension`.

    A string carries its unit (`600 GB/s`); a bare number is already in the base unit. Raises InputError when the unit
    is unknown or the number is infinite, NaN or not above `minimum`; with `zero`, a quantity of 0 is legal too.
    """
    wanted = f"must be a number with a unit, for instance {EXAMPLES[dimension]}"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise InputError(wanted, field=field, value=value)
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if not match:
            raise InputError(wanted, field=field, value=value)
        unit = UNITS[dimension].get(match[2])
        if unit is None:
            raise InputError(
                f"unit {match[2][:20]!r} is unknown here",
                field=field,
                value=value,
                remedy=_way_out(match[2], dimension),
            )
        number = float(match[1].replace("_", "").replace(",", "")) * unit
    else:
        number = float(value) if abs(value) < _HUGE else math.inf
    if not math.isfinite(number) or number < minimum or (number == minimum and not zero):
        bound = f"at least {minimum:g}" if zero else f"above {minimum:g}"
        raise InputError(f"must be finite and {bound}", field=field, value=value)
    return number


def _way_out(unit: str, dimension: Dimension) -> str:
    """Return the way out for an unknown unit; for `Gbps`, `Gb/s` and `GBps` their one meaning."""
    bits = re.fullmatch(r"([kKMGTP]?)(b|B)(?:/s|ps)", unit)
    if dimension == "bytes_per_s" and bits:
        return f"write {bits[1]}{'bit' if bits[2] == 'b' else 'B'}/s"
    if dimension == "bytes" and re.fullmatch(r"[kKMGT]i?", unit):
        return f"did you mean '{unit}B'?"
    close = [each for each in UNITS[dimension] if each.lower() == unit.lower()]
    if close:
        return f"did you mean {close[-1]!r}?"
    return f"write for instance {EXAMPLES[dimension]}" if len(unit) > len("Gbit/s") else nearest(unit, UNITS[dimension])


_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def _significant(value: float, digits: int) -> str:
    """Return `value` with `digits` significant digits and thousands separators, never in powers of ten."""
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def format_si(value: float, unit: str = "", digits: int = 3) -> str:
    """Return `value` with an SI prefix, e.g. `614 k` or `25 GB/s`."""
    for scale, prefix in _SCALES:
        if abs(value) >= scale:
            return f"{_significant(value / scale, digits)} {prefix}{unit}"
    return f"{_significant(value, digits)} {unit}".rstrip()


def format_duration(seconds: float) -> str:
    """Return a duration in the unit that reads best: s, ms or us."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(seconds) >= scale:
            return f"{_significant(seconds / scale, 3)} {unit}"
    return f"{_significant(seconds / 1e-6, 3)} us"
