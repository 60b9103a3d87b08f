"""What a simulated day is like. Defaults are assumptions, and a report shows them; rates of faults are the caller's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.control.policy import Deployment

_FAULT = re.compile(r"^(gpu|node):([0-9]{1,7})(?:@([0-9]{1,6}(?:\.[0-9]{1,6})?))?$")
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """Traffic, machines and heat, in the units of their names."""

    peak_share: float = 0.8
    """Of what the plan can do, asked for in the busiest hour ..."""
    trough_share: float = 0.3
    """... and in the quietest, half a day away."""
    demand_noise: float = 0.03
    """Standard deviation of a window's demand, relative."""
    scatter: float = 0.1
    """Of an expert's load from window to window, of its logarithm."""
    walk_spread: float = 0.3
    """Of an expert's popularity over long, of its logarithm ..."""
    walk_s: float = 12_000.0
    """... and the time after which it has forgotten where it was."""
    beat_s: float = 1.0
    repair_s: float = 1800.0
    """From a fault until the ranks are there again."""
    start_s: float = 120.0
    """A parked or fenced, healthy rank takes to start."""
    storage_bytes_per_s: float = 23.7e9
    """That the ranks of a node read from storage together: eight processes took 27 s for 640 GB of weights over a link
    of 400 Gbit/s (foundation-model-stack/fastsafetensors, issue 55)."""
    background_share: float = 0.2
    """Of the links, for copies that nobody waits for."""
    coolant_c: float = 30.0
    full_rise_c: float = 45.0
    """Above the coolant, of a GPU at its maximum power."""
    throttle_c: float = 90.0
    hot_rise: float = 1.5
    """Times the rise of a GPU whose cooling is poor ..."""
    hot_from: float = 0.4
    hot_until: float = 0.5
    """... between these parts of the day."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Ranks that fall silent, as frozen machines do: nobody is told."""

    time_s: float
    ranks: tuple[int, ...]
    text: str


def parse_faults(texts: Sequence[str], deployment: Deployment, hours: float) -> tuple[Fault, ...]:
    """Return the faults of `gpu:3@6.5` or `node:1` (hours of the day), by time; those without one share it evenly.

    Raises InputError for anything else, and for GPUs and nodes that the deployment does not have.
    """
    found: list[Fault] = []
    width = deployment.ranks_per_node
    for index, text in enumerate(texts):
        match = _FAULT.match(text)
        if not match:
            raise InputError("is not a fault", field="--fail", value=text, remedy="write gpu:3, node:1 or gpu:3@6.5")
        number, gpus = int(match[2]), deployment.num_ranks * deployment.gpus_per_rank
        most = gpus if match[1] == "gpu" else deployment.num_nodes
        if number >= most:
            rule = f"an instance of the plan has {most} of them, counted from 0"
            raise InputError(rule, field="--fail", value=text)
        hour = float(match[3]) if match[3] else hours * (index + 1) / (len(texts) + 1)
        if hour >= hours:
            raise InputError(f"the day has {hours:g} hours", field="--fail", value=text)
        rank = number // deployment.gpus_per_rank
        ranks = (rank,) if match[1] == "gpu" else tuple(range(number * width, (number + 1) * width))
        found.append(Fault(hour * HOUR_S, ranks, text))
    return tuple(sorted(found, key=lambda fault: fault.time_s))
