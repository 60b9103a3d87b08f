"""A simulated day as people read it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from moiety.cli.table import pairs, table
from moiety.units import format_si

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from moiety.control.day.conditions import Conditions
    from moiety.control.day.report import Day


def day_sections(name: str, role: str, day: Day, conditions: Conditions) -> Iterator[RenderableType]:
    """Give the sections: what the day came to, faults, decisions, and what was assumed."""
    limit = format_si(day.clock_hz, "Hz") if day.clock_hz else "as it was"
    if day.power_cap_w:
        limit = f"capped at {format_si(day.power_cap_w, 'W')}"
    rows = [
        ("windows within the SLO", f"{day.windows_within_slo_share:.2%} of {day.windows:,}"),
        ("tokens served", f"{day.served_share:.3%} of those asked for"),
        ("nothing served for", f"{day.refused_s:,.1f} s"),
        ("balance", f"{day.mean_balance:.3f}; {day.mean_balance_untouched:.3f} had the placement been left alone"),
        ("nodes", f"{day.fewest_nodes} to {day.most_nodes}"),
        ("clock", limit),
        ("energy", f"{format_si(day.energy_j, 'J')}, {day.energy_saved_share:.1%} less than all nodes at full clock"),
    ]
    yield pairs(f"{day.hours:g} hours of {name}, one {role} instance of {day.ranks} expert ranks, simulated", rows)
    if day.recoveries:
        faults = [
            (
                each.fault,
                f"{each.time_s / 3600:.2f} h",
                _seconds(each.fenced_after_s),
                _seconds(each.served_after_s),
                _seconds(each.back_after_s),
            )
            for each in day.recoveries
        ]
        yield table("Faults", ("what", ">at", ">fenced after", ">served again after", ">whole again after"), faults)
    decided = [(kind, f"{number:,}") for kind, number in day.commands.items()]
    decided += [(f"experts moved: {reason}", f"{number:,}") for reason, number in day.moves.items()]
    yield table("Decided", ("what", ">times"), decided)
    assumed = [(key, f"{value:g}") for key, value in asdict(conditions).items()]
    yield pairs("Assumed", assumed)


def _seconds(value: float | None) -> str:
    return "not that day" if value is None else f"{value:,.1f} s"
