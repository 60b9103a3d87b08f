"""What a simulated day came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recovery:
    """A fault, and how it was overcome; None: not within the day."""

    fault: str
    time_s: float
    fenced_after_s: float | None
    served_after_s: float | None
    """Until every expert was somewhere again."""
    back_after_s: float | None
    """Until all of its ranks worked again."""


@dataclass(frozen=True, slots=True)
class Day:
    """The figures; shares are of 1."""

    hours: float
    windows: int
    seed: int
    ranks: int
    recoveries: tuple[Recovery, ...]
    commands: dict[str, int]
    """How many of each kind were given out."""
    moves: dict[str, int]
    """Experts moved, by reason."""
    mean_balance: float
    """Mean over fullest rank's load."""
    mean_balance_untouched: float
    """Under the plan's own placement, were it left alone."""
    fewest_nodes: int
    most_nodes: int
    clock_hz: float | None
    """At the end of the day; None where no clock was locked."""
    power_cap_w: float | None
    energy_j: float
    energy_untouched_j: float
    """All nodes at the highest clock, under the same demand."""
    energy_saved_share: float
    windows_within_slo_share: float
    served_share: float
    """Of the tokens that were asked for."""
    refused_s: float
    """Time in which some expert was nowhere, or nobody decided."""
