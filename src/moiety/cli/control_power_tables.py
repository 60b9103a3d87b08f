"""GPUs, and the limits chosen for them, as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cli.table import table
from moiety.control.commands import LockClock
from moiety.control.energy import limit_command
from moiety.units import format_si

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from moiety.control.energy import LimitChoice
    from moiety.gpus.limits import Limit
    from moiety.gpus.nvml import Gpus, Reading


def gpus_table(readings: Sequence[Reading]) -> RenderableType:
    """Return a row a GPU; a dash where something cannot be read."""
    columns = ("GPU", "name", ">power", ">SM clock", ">heat", ">memory", ">busy", "slowed by")
    rows = [
        (
            str(each.index),
            each.name,
            _or_dash(each.power_w, lambda watts: f"{watts:,.0f} W"),
            _or_dash(each.sm_clock_hz, lambda hertz: f"{hertz / 1e6:,.0f} MHz"),
            _or_dash(each.temperature_c, lambda degrees: f"{degrees:.0f} °C"),
            _or_dash(each.memory_used_bytes, lambda used: format_si(used, "B")),
            _or_dash(each.busy_share, lambda share: f"{share:.0%}"),
            ", ".join(each.throttles) or "nothing",
        )
        for each in readings
    ]
    return table("GPUs of this machine", columns, rows)


def choices_table(choices: Sequence[LimitChoice]) -> RenderableType:
    """Return a row a phase: what it is to run at, and what that is worth."""
    columns = ("phase", "setting", ">power", ">step", ">energy a token", "why")
    rows = [
        (
            each.phase,
            _setting(each),
            f"{each.point.power_w:,.0f} W ({0 - each.saved_share:+.1%})",
            f"{each.point.step_s * 1e3:,.2f} ms ({each.longer_share:+.1%})",
            f"{0 - each.energy_saved_share:+.1%}",
            each.reason,
        )
        for each in choices
    ]
    return table("Clock or cap by phase, as the planner's model expects it", columns, rows)


def limits_table(found: Gpus, indices: Sequence[int], limit: Limit, *, applied: bool) -> RenderableType:
    """Return a row a GPU of this machine, with what is set or would be."""
    what = f"SM clock locked at {limit.value / 1e6:,.0f} MHz"
    if limit.kind == "power":
        what = f"power capped at {limit.value:,.0f} W"
    title = "On this machine" if applied else "Would be set with --apply"
    return table(title, ("GPU", "name", "limit"), [(str(index), found.name(index), what) for index in indices])


def _setting(choice: LimitChoice) -> str:
    if not choice.lowers:
        return "as it is"
    command = limit_command(choice.point, choice.phase, ())
    if isinstance(command, LockClock):
        return f"lock SM clock at {command.clock_hz / 1e6:,.0f} MHz"
    return f"cap power at {command.power_w:,.0f} W"


def _or_dash(value: float | None, text: Callable[[float], str]) -> str:
    return "-" if value is None else text(value)
