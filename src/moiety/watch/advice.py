"""Advice: what a person or another program is to do, why, on which figures, and why it was not done from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

from moiety.control.commands import Admit, CapPower, Drain, Fence, LockClock, ScaleUp, StandBack
from moiety.control.working import relative_loads, working_problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from moiety.control.commands import Command
    from moiety.control.policy import ClockPoint
    from moiety.control.state import State
    from moiety.placement.problem import Loads, SlotMap
    from moiety.watch.site import Site, Target

Kind = Literal[
    "placement", "start", "drain", "restart", "return", "clock", "power", "stand-back", "re-plan", "source", "over"
]
Figure: TypeAlias = "float | int | str"
NO_HANDLE = "engines are neither started, stopped nor drained from here"
NO_CLOCK = "the driver sets clocks and power, for root only; nothing was set from here"
LOADED: Mapping[Target, str] = {
    "sglang": "a running SGLang takes no placement: it reads the file at its start (--init-expert-location)",
    "vllm-ascend": "a running vLLM takes no placement: vllm-ascend reads the file at its start (expert_map_path)",
    "moiety": "vLLM loads no placement, and a running engine takes none",
}


@dataclass(frozen=True, slots=True)
class Advice:
    """One piece of advice."""

    kind: Kind
    do: str
    reason: str
    figures: dict[str, Figure] = field(default_factory=dict[str, "Figure"])
    limits: str = ""
    """What cannot be done from here, or to an engine that runs."""
    number: int = 0
    """From 1, in the order in which it was given."""
    time_s: float = 0.0
    """Of the day, since 1970."""

    def document(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {
            "number": self.number,
            "time": datetime.fromtimestamp(self.time_s, UTC).isoformat(timespec="seconds"),
            "kind": self.kind,
            "do": self.do,
            "reason": self.reason,
            "figures": self.figures,
            "limits": self.limits,
        }


def fleet_advice(commands: Iterable[Command], fleet: State, site: Site) -> list[Advice]:
    """Return what the commands about whole instances ask for; what an instance does by itself is left out."""
    found: list[Advice] = []
    for command in commands:
        match command:
            case StandBack():
                found.append(_stand_back(fleet))
            case Fence(ranks=ranks):
                found.append(_restart(ranks, site))
            case Admit(ranks=ranks):
                found.append(Advice("return", f"send requests to {names_of(ranks, site)} again", "it answers again"))
            case ScaleUp(ranks=ranks):
                reason = f"the demand is beyond {site.policy.scale_up_at:.0%} of what the working instances can do"
                figures = _load_figures(fleet)
                found.append(Advice("start", f"start {names_of(ranks, site)}", reason, figures, NO_HANDLE))
            case Drain(ranks=ranks):
                found.append(_drain(ranks, fleet, site))
            case LockClock(clock_hz=clock_hz):
                found.append(_clock(clock_hz, fleet))
            case CapPower(power_w=power_w):
                found.append(_power(power_w, fleet))
            case _:
                continue
    return found


def placement_advice(experts: State, before: SlotMap, in_force: SlotMap, site: Site) -> Advice:
    """Return why the placement file is another one: what the moves save by the forecast, and what loading it would."""
    deployment = experts.deployment
    now = experts.slot_map.reshape(deployment.num_layers, -1)
    changed = (now != before).sum(axis=1)
    peaks = {name: expected_peaks(experts, held) for name, held in (("before", before), ("now", now))}
    figures: dict[str, Figure] = {
        "moves": int(changed.sum()),
        "layers": int((changed > 0).sum()),
        "expected_balance_before": round(float((1 / peaks["before"]).mean()), 4),
        "expected_balance": round(float((1 / peaks["now"]).mean()), 4),
    }
    if in_force.shape == now.shape:
        held = expected_peaks(experts, in_force)
        saved_s = float((held - peaks["now"]).sum()) * deployment.layer_step_s
        figures["expected_balance_in_force"] = round(float((1 / held).mean()), 4)
        figures["step_share_saved_by_loading"] = round(saved_s / deployment.step_s, 4)
    reason = f"the load of {figures['layers']} layers has drifted from the placement, and the moves pay"
    return Advice("placement", "load the placement when the engine next starts", reason, figures, LOADED[site.target])


def expected_peaks(experts: State, slot_map: SlotMap) -> Loads:
    """Return the peak load of each layer by the forecast under a map [layers, slots]; 1 is the mean GPU load."""
    problem = working_problem(experts, experts.forecast.shares[None])
    peaks: Loads = relative_loads(problem, slot_map)[0].max(axis=1)
    return peaks


def names_of(ranks: Iterable[int], site: Site) -> str:
    """Return the instances by their first addresses."""
    return ", ".join(f"the instance at {site.instances[rank][0]}" for rank in ranks)


def _stand_back(fleet: State) -> Advice:
    members = int(fleet.ranks.members.sum())
    reason = f"most of {members} instances do not answer: they may be gone, or this machine may be cut off"
    return Advice("stand-back", "look at the network; nothing is decided about instances until they answer", reason)


def _restart(ranks: tuple[int, ...], site: Site) -> Advice:
    silent_s = site.policy.patience.silent_s
    do = f"take {names_of(ranks, site)} out of the router, and start it anew"
    return Advice("restart", do, f"it has not answered for more than {silent_s:g} s", {}, NO_HANDLE)


def _drain(ranks: tuple[int, ...], fleet: State, site: Site) -> Advice:
    patience, share = site.policy.scale_patience, site.policy.scale_down_to
    reason = f"for {patience} rounds the others would have carried the demand at {share:.0%} of what they can do"
    do = f"send {names_of(ranks, site)} no new requests, and stop it when it has finished those it has"
    return Advice("drain", do, reason, _load_figures(fleet), NO_HANDLE)


def _load_figures(fleet: State) -> dict[str, Figure]:
    rate = fleet.deployment.tokens_per_s_per_node or 0.0
    return {
        "demand_tokens_per_s": round(fleet.demands[-1], 3),
        "backlog_tokens": round(fleet.backlog_tokens, 3),
        "tokens_per_s_per_instance": round(rate, 3),
        "working_instances": int(fleet.ranks.working.sum()),
    }


def _clock(clock_hz: float, fleet: State) -> Advice:
    mhz = round(clock_hz / 1e6)
    do = f"lock the SM clocks of the decoding GPUs at {mhz} MHz: nvidia-smi --lock-gpu-clocks={mhz}"
    point = next(each for each in fleet.deployment.clock_points if each.clock_hz == clock_hz)
    return Advice("clock", do, "decoding waits for memory", _point_figures(point, fleet), NO_CLOCK)


def _power(power_w: float, fleet: State) -> Advice:
    do = f"cap the GPUs at {power_w:.0f} W: nvidia-smi --power-limit={power_w:.0f}"
    point = next(each for each in fleet.deployment.clock_points if each.power_w == power_w)
    return Advice("power", do, "a lower clock hardly lengthens the step", _point_figures(point, fleet), NO_CLOCK)


def _point_figures(point: ClockPoint, fleet: State) -> dict[str, Figure]:
    """Return what the planner's model expects of it; none of it is measured."""
    highest = fleet.deployment.clock_points[0]
    return {
        "modelled_power_share_saved": round(1 - point.power_w / highest.power_w, 4),
        "modelled_step_share_longer": round(point.step_s / highest.step_s - 1, 4),
    }
