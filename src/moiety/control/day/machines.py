"""The machines of a simulated day: what moves take, how hot GPUs get, what they draw, how long a step is."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from moiety.control.working import relative_loads, working_map, working_problem

if TYPE_CHECKING:
    from moiety.cluster.device import Device
    from moiety.control.commands import MoveExperts
    from moiety.control.day.conditions import Conditions
    from moiety.control.policy import ClockPoint, Deployment
    from moiety.control.state import State
    from moiety.placement.problem import Loads


def moves_s(command: MoveExperts, of: Deployment, conditions: Conditions) -> float:
    """Return the seconds that moves take: step by step the busiest port, or a node's reading from storage."""
    links = of.links
    share = 1.0 if command.reason == "recovery" else conditions.background_share
    seconds: dict[tuple[int, str, int], float] = defaultdict(float)
    for move in command.moves:
        size = links.expert_bytes
        if move.source is None:
            node = move.rank // of.ranks_per_node
            seconds[move.step, "storage", node] += size * of.gpus_per_rank / conditions.storage_bytes_per_s
        elif move.source != move.rank:
            near = move.source // of.ranks_per_node == move.rank // of.ranks_per_node
            rate = (links.node_bytes_per_s if near else links.network_bytes_per_s) * share
            seconds[move.step, f"out {near}", move.source] += size / rate
            seconds[move.step, f"in {near}", move.rank] += size / rate
    longest: dict[int, float] = defaultdict(float)
    for (step, _, _), value in seconds.items():
        longest[step] = max(longest[step], value)
    return sum(longest.values())


def clock_point(state: State) -> ClockPoint | None:
    """Return the point of the clock, or cap, that is set; the highest where none is, None where none is known."""
    points = state.deployment.clock_points
    found = [point for point in points if state.limit in (point.clock_hz, point.power_w)]
    return (found or list(points) or [None])[0]


def rank_loads(state: State, counts: Loads) -> Loads:
    """Return the working ranks' loads relative to their mean, [layers, working ranks], of counts [layers, experts]."""
    loads: Loads = relative_loads(working_problem(state, counts[None]), working_map(state))[0]
    return loads


def step_seconds(state: State, peaks: Loads, planned_peaks: Loads) -> float:
    """Return the step under the clock that is set when the fullest ranks carry `peaks`, [layers], not those planned.

    With fewer ranks each has more to do in the same proportion.
    """
    point, of = clock_point(state), state.deployment
    whole = of.step_s if point is None else point.step_s
    return max(whole + of.layer_step_s * float((peaks - planned_peaks).sum()), 0.0)


def watts(state: State, busy: float, device: Device) -> Loads:
    """Return what each rank's GPUs draw, [ranks]: idle without work, the plan's power when busy, else in between."""
    point = clock_point(state)
    full = device.max_power_w if point is None else point.power_w
    working = device.idle_power_w + min(busy, 1.0) * max(full - device.idle_power_w, 0.0)
    drawn: Loads = np.where(state.ranks.members, working, device.idle_power_w) * state.deployment.gpus_per_rank
    return drawn


def temperature_c(power_w: float, device: Device, conditions: Conditions, *, poor: bool) -> float:
    """Return a GPU's temperature at that power, in balance with its coolant."""
    rise = conditions.full_rise_c * power_w / device.max_power_w
    return conditions.coolant_c + rise * (conditions.hot_rise if poor else 1.0)


def serves(state: State) -> bool:
    """Return whether requests can be served: every expert is somewhere, and nobody stands back.

    Ranks that leave serve until they have gone; slots that wait for their experts do not matter.
    """
    if state.standing_back:
        return False
    held = state.slot_map[:, state.ranks.members].reshape(len(state.slot_map), -1)
    experts = np.arange(state.deployment.num_experts)
    return all(bool(np.isin(experts, row).all()) for row in held)
