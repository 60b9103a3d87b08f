"""The day itself: an agenda of windows, faults, repairs and moves; between them nothing happens that decides."""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from moiety.control.apply import apply
from moiety.control.commands import CapPower, Fence, LockClock, MoveExperts, ScaleUp
from moiety.control.day.conditions import HOUR_S
from moiety.control.day.machines import (
    clock_point,
    moves_s,
    rank_loads,
    serves,
    step_seconds,
    temperature_c,
    watts,
)
from moiety.control.day.report import Day, Recovery
from moiety.control.day.traffic import Traffic
from moiety.control.decide import settle
from moiety.control.events import DeviceReading, ExpertCounts, Heartbeat, Joined, Moved, RequestMetrics, Timer
from moiety.control.state import Status, initial_state
from moiety.control.working import is_covered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moiety.cluster.device import Device
    from moiety.control.commands import Command
    from moiety.control.day.conditions import Conditions, Fault
    from moiety.control.events import Event
    from moiety.control.policy import Deployment, Policy
    from moiety.placement.problem import Loads, SlotMap


def simulate_day(  # noqa: PLR0913 - what decides a day
    of: Deployment,
    slot_map: SlotMap,
    shares: Loads,
    device: Device,
    policy: Policy,
    conditions: Conditions,
    *,
    top_k: int,
    hours: float = 24.0,
    faults: Sequence[Fault] = (),
    seed: int = 0,
) -> Day:
    """Return what the policy made of a day; the same input gives the same day to the bit.

    `slot_map` [layers, slots] and `shares` [layers, experts] are the plan's.
    """
    traffic = Traffic(shares, conditions, policy.window_s, seed)
    day = _Simulation(of, slot_map, shares, device, policy, conditions, traffic, top_k)
    for index, fault in enumerate(faults):
        day.at(fault.time_s, lambda now, index=index, fault=fault: day.fail(now, index, fault))
    windows = int(hours * HOUR_S // policy.window_s)
    for window in range(1, windows + 1):
        day.at(window * policy.window_s, day.window)
    day.run(windows * policy.window_s)
    return day.report(hours, windows, seed, faults)


class _Simulation:
    """The world around the control plane, and the sums of what is seen of it."""

    def __init__(  # noqa: PLR0913, PLR0917 - as above
        self,
        of: Deployment,
        slot_map: SlotMap,
        shares: Loads,
        device: Device,
        policy: Policy,
        conditions: Conditions,
        traffic: Traffic,
        top_k: int,
    ) -> None:
        self.of, self.device, self.policy, self.conditions = of, device, policy, conditions
        self.traffic, self.top_k = traffic, top_k
        self.start = self.state = initial_state(of, policy, slot_map)
        self.planned_peaks = rank_loads(self.start, shares).max(axis=1)
        self.alive = np.ones(of.num_ranks, dtype=np.bool_)
        self.capacity = (of.tokens_per_s_per_node or of.num_ranks) * of.num_nodes
        self.agenda: list[tuple[float, int, Callable[[float], None]]] = []
        self.order = count()
        self.commands, self.moved = Counter[str](), Counter[str]()
        self.fenced: dict[int, float] = {}
        self.served: dict[int, float] = {}
        self.back: dict[int, float] = {}
        self.down: dict[int, Fault] = {}
        self.time_s = self.refused_s = self.energy_j = self.untouched_j = self.asked = self.answered = 0.0
        self.balances: list[tuple[float, float]] = []
        self.nodes: list[int] = []
        self.within = 0
        self.stall_s = 0.0
        self.step_s = of.step_s
        self.ticking = False

    def at(self, time_s: float, what: Callable[[float], None]) -> None:
        """Put something on the agenda; of what happens at once, the first that was put there comes first."""
        heapq.heappush(self.agenda, (time_s, next(self.order), what))

    def run(self, until_s: float) -> None:
        """Let everything up to `until_s` happen."""
        while self.agenda and self.agenda[0][0] <= until_s:
            time_s, _, what = heapq.heappop(self.agenda)
            if not serves(self.state) or (self.state.ranks.members & ~self.alive).any():
                self.stall_s += time_s - self.time_s
            self.time_s = time_s
            what(time_s)
            self.note(time_s)

    def tell(self, events: Sequence[Event], now: float) -> None:
        """Let every living rank beat, tell the events, and do what is asked for."""
        state = self.state
        for rank in np.flatnonzero(self.alive & (state.ranks.status != Status.PARKED)).tolist():
            if state.ranks.members[rank] or state.ranks.status[rank] == Status.JOINING:
                state = apply(Heartbeat(now, rank, state.epoch, 0, waiting=False), state)
        for event in events:
            state = apply(event, state)
        self.state, commands = settle(state, now)
        for command in commands:
            self.carry_out(command, now)

    def carry_out(self, command: Command, now: float) -> None:
        """Put on the agenda what comes of a command."""
        self.commands[type(command).__name__] += 1
        if isinstance(command, MoveExperts) and command.moves:
            done = now + moves_s(command, self.of, self.conditions)
            moved = [Moved(done, command.epoch, *move[:4]) for move in command.moves]
            self.moved[command.reason] += len(moved)
            self.at(done, lambda time_s: self.tell(moved, time_s))
        elif isinstance(command, Fence):
            healthy = [rank for rank in command.ranks if self.alive[rank]]
            self.join(healthy, now + self.conditions.start_s)
        elif isinstance(command, ScaleUp):
            self.join(command.ranks, now + self.conditions.start_s)

    def join(self, ranks: Sequence[int], time_s: float) -> None:
        """Have ranks start anew, as far as they are whole then."""

        def start(now: float) -> None:
            self.tell([Joined(now, rank) for rank in ranks if self.alive[rank]], now)

        if ranks:
            self.at(time_s, start)

    def fail(self, now: float, index: int, fault: Fault) -> None:
        """Let ranks fall silent; they are repaired later, and meanwhile every beat of the others counts."""
        self.tell([], now)  # they have beaten until now
        self.alive[list(fault.ranks)] = False
        self.down[index] = fault
        self.at(now + self.conditions.repair_s, lambda time_s: self.repair(time_s, index, fault))
        if not self.ticking:
            self.ticking = True
            self.at(now + self.conditions.beat_s, self.tick)

    def repair(self, now: float, index: int, fault: Fault) -> None:
        """Let the ranks of a fault come back, but for those of another one."""
        others = {rank for other, each in self.down.items() if other != index for rank in each.ranks}
        whole = [rank for rank in fault.ranks if rank not in others]
        self.alive[whole] = True
        parked = self.state.ranks.status == Status.PARKED
        self.join([rank for rank in whole if not parked[rank]], now)

    def tick(self, now: float) -> None:
        """Let ranks beat, for as long as someone is missing who is still counted on."""
        self.tell([Timer(now)], now)
        missing = bool((self.state.ranks.members & ~self.alive).any())
        self.ticking = missing or bool(self.state.pending)
        if self.ticking:
            beat_s = self.policy.window_s if self.state.standing_back else self.conditions.beat_s
            self.at(now + beat_s, self.tick)

    def note(self, now: float) -> None:
        """Note how far the faults have been overcome."""
        ranks = self.state.ranks
        for index, fault in list(self.down.items()):
            chosen = list(fault.ranks)
            if not ranks.members[chosen].any():
                self.fenced.setdefault(index, now)
            if index in self.fenced and serves(self.state):
                self.served.setdefault(index, now)
            if index in self.served and ranks.working[chosen].all() and not self.state.pending:
                self.back[index] = now
                del self.down[index]

    def window(self, now: float) -> None:
        """Let a window end: count, read, tell, and add up."""
        window_s = self.policy.window_s
        asked = self.traffic.demand(now, self.capacity)
        counts = self.traffic.counts(now, asked * window_s * self.top_k)
        before = self.state
        nodes = int(before.ranks.working.sum()) / self.of.ranks_per_node
        up = min(self.stall_s, window_s)
        self.stall_s = 0.0
        can, balance = 0.0, 0.0
        if is_covered(before):  # else slots wait for their experts, and the step is taken to be as it was
            peaks = rank_loads(before, counts).max(axis=1)
            balance = float((1 / peaks).mean())
            self.step_s = step_seconds(before, peaks, self.planned_peaks)
        step_s = self.step_s
        if serves(before):
            can = self.capacity * nodes / self.of.num_nodes * self.of.step_s / step_s * (1 - up / window_s)
        busy = asked / can if can else 0.0
        power = watts(before, busy, self.device)
        self.add_up(counts, asked, can, power, balance)
        limit = self.of.tpot_limit_s
        tpot_s = (self.of.tpot_s or self.of.step_s) * step_s / self.of.step_s
        self.within += can >= asked and (limit is None or tpot_s <= limit)
        self.nodes.append(round(nodes))
        self.refused_s += up
        readings = self.readings(now, counts, power)
        metrics = RequestMetrics(now, asked, tpot_s if limit is not None and can else None)
        self.tell([*readings, metrics, ExpertCounts(now, counts)], now)

    def readings(self, now: float, counts: Loads, power: Loads) -> list[Event]:
        """Return what is read of every working rank's GPU: the fuller it is, the more of the power is its own."""
        state, of = self.state, self.conditions
        if not is_covered(state):
            return []
        working = np.flatnonzero(state.ranks.working).tolist()
        loads = rank_loads(state, counts).mean(axis=0)
        poor = of.hot_from <= (now % (24 * HOUR_S)) / (24 * HOUR_S) < of.hot_until
        found: list[Event] = []
        for rank, load in zip(working, loads.tolist(), strict=True):
            each = min(float(power[rank]) / self.of.gpus_per_rank * load, self.device.max_power_w)
            heat = temperature_c(each, self.device, of, poor=poor and rank == self.of.num_ranks - 1)
            found.append(DeviceReading(now, rank, heat, heat >= of.throttle_c, each))
        return found

    def add_up(self, counts: Loads, asked: float, can: float, power: Loads, balance: float) -> None:
        """Add a window to the sums, beside the same window had nobody decided anything."""
        window_s = self.policy.window_s
        self.asked += asked * window_s
        self.answered += min(asked, can) * window_s
        self.energy_j += float(power.sum()) * window_s
        peaks = rank_loads(self.start, counts).max(axis=1)
        slower = step_seconds(self.start, peaks, self.planned_peaks) / self.of.step_s
        untouched = watts(self.start, asked / self.capacity * slower, self.device)
        self.untouched_j += float(untouched.sum()) * window_s
        if balance:
            self.balances.append((balance, float((1 / peaks).mean())))

    def report(self, hours: float, windows: int, seed: int, faults: Sequence[Fault]) -> Day:
        """Return the figures."""

        def after(times: dict[int, float], index: int) -> float | None:
            return times[index] - faults[index].time_s if index in times else None

        recoveries = tuple(
            Recovery(
                fault.text,
                fault.time_s,
                after(self.fenced, index),
                after(self.served, index),
                after(self.back, index),
            )
            for index, fault in enumerate(faults)
        )
        balance = np.mean(self.balances, axis=0).tolist() if self.balances else [0.0, 0.0]
        point = clock_point(self.state) if self.state.limit is not None else None
        return Day(
            hours=hours,
            windows=windows,
            seed=seed,
            ranks=self.of.num_ranks,
            recoveries=recoveries,
            commands=dict(sorted(self.commands.items())),
            moves=dict(sorted(self.moved.items())),
            mean_balance=balance[0],
            mean_balance_untouched=balance[1],
            fewest_nodes=min(self.nodes),
            most_nodes=max(self.nodes),
            clock_hz=point.clock_hz if point and self.commands[LockClock.__name__] else None,
            power_cap_w=point.power_w if point and self.commands[CapPower.__name__] else None,
            energy_j=self.energy_j,
            energy_untouched_j=self.untouched_j,
            energy_saved_share=1 - self.energy_j / self.untouched_j if self.untouched_j else 0.0,
            windows_within_slo_share=self.within / windows,
            served_share=self.answered / self.asked if self.asked else 1.0,
            refused_s=self.refused_s,
        )
