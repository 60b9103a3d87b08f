"""State: everything that decisions rest on. Never changed: `apply` makes a new one of an event."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from moiety.control.drift import no_drift
from moiety.control.forecast.backtest import empty_forecast
from moiety.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.control.commands import Move, Occasion
    from moiety.control.drift import Drift
    from moiety.control.forecast.backtest import Forecast
    from moiety.control.policy import Deployment, Policy
    from moiety.health import Blame
    from moiety.placement.problem import Loads, SlotMap

_WINDOWS = 16
_PAST_WINDOWS = 64
"""Of steps, that ranks which few others compute the same layers as are held against."""
NOBODY = -1
"""No rank."""


class Status(IntEnum):
    """What a rank is to the others."""

    WORKING = 0
    LEAVING = 1
    """Works and gives its experts away."""
    FENCED = 2
    JOINING = 3
    """Has started anew and waits to be taken in."""
    PARKED = 4


@dataclass(frozen=True, slots=True, eq=False)
class Ranks:
    """What is known of each rank, each [ranks] unless said otherwise."""

    status: NDArray[np.int8]
    beat_s: Loads
    """Time of the last heartbeat."""
    progress: SlotMap
    progress_s: Loads
    """Time at which `progress` last changed."""
    waiting: NDArray[np.bool_]
    waits_for: SlotMap
    """The rank that each waits for; -1: none, or nobody knows which."""
    loading: NDArray[np.bool_]
    exited: NDArray[np.bool_]
    """Members whose process is known to have ended."""
    own_s: Loads
    """Own time of a step in the last window of steps, without waits; NaN where nothing is known."""
    paces: Loads
    """Time over what the rank's work takes others, in the last windows of steps, [ranks, windows], the newest last."""
    few: NDArray[np.bool_]
    """Whether too few others compute the same layers, so that its pace is beside its own past."""
    past: Loads
    """[windows, ranks, 2 + kinds of work]: pace, seconds and work in windows in which none of the few was slow, the
    newest last. Of this epoch alone, as layers change hands with it."""
    admitted_s: Loads
    """Time at which it was taken in last."""
    fenced_s: Loads
    """Time at which it was fenced last ..."""
    wait_s: Loads
    """... and for how long it is not taken back since; 0 where it never was."""
    relief: Loads
    """Speed that heat leaves it, 1 when cool."""
    cool: SlotMap
    """Readings in a row below the temperature at which load comes back."""
    power_w: Loads
    """NaN where unknown."""

    @property
    def members(self) -> NDArray[np.bool_]:
        """Those whose word counts."""
        return self.status <= Status.LEAVING

    @property
    def working(self) -> NDArray[np.bool_]:
        """Those that keep experts."""
        return self.status == Status.WORKING


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """The deployment as far as it is known."""

    deployment: Deployment
    policy: Policy
    time_s: float
    epoch: int
    ranks: Ranks
    blames: tuple[Blame, ...]
    """Who could not reach whom, of late."""
    slot_map: SlotMap
    """Expert of each slot, [layers, ranks, slots of a rank]; -1: none, or nobody knows which."""
    planned_slots: int
    """Slots of a layer on each rank at the start; there are more only while experts would not fit otherwise."""
    num_slots: int
    """Those that there are when nothing is pending any more."""
    pending: tuple[Move, ...]
    """Moves that were asked for and not reported yet."""
    pending_s: float
    """When they were asked for."""
    pending_reason: Occasion
    unfit: str | None
    """Why the pending moves cannot be made, where that was reported."""
    forecast: Forecast
    drift: Drift
    refused: tuple[tuple[int, int], ...]
    """(layer, expert) without which nothing is served."""
    standing_back: bool
    superseded: bool
    """Whether someone works under an epoch that this controller has not made."""
    asked: tuple[int, ...]
    """Ranks that were to be started and have not reported yet."""
    asked_s: float
    """When they were asked for."""
    demands: tuple[float, ...]
    """Tokens a second of the last reports (`demand.py`), the newest last."""
    backlog_tokens: float
    """That waited for room by the last report ..."""
    backlog_s: float | None
    """... which came at this time; None before the first."""
    tpot_s: float | None
    speed_placed: Loads
    """Speed of each rank when all layers were last placed by it, [ranks]; 0 for one without experts."""
    limit: float | None
    """The clock or the power that was last set, in Hz or W."""
    recoveries: int
    moves: int
    """Moves that were reported done."""
    zombie_words: int
    """Messages that carried an old epoch, or came from a fenced rank; ignored."""


def initial_state(
    deployment: Deployment, policy: Policy, slot_map: SlotMap, *, time_s: float = 0.0, epoch: int = 1
) -> State:
    """Return the state at the start: every rank works, its experts as in `slot_map` [layers, slots].

    Raises InputError where the map does not fit the deployment.
    """
    layers, ranks, experts = deployment.num_layers, deployment.num_ranks, deployment.num_experts
    if slot_map.ndim != 2 or slot_map.shape[0] != layers or slot_map.shape[1] % ranks:  # noqa: PLR2004 - layers, slots
        rule = f"must have {layers} layers of slots that divide over {ranks} ranks"
        raise InputError(rule, field="physical_to_logical_map", value=list(slot_map.shape))
    if slot_map.size and (slot_map.min() < 0 or slot_map.max() >= experts):
        raise InputError(f"must name experts from 0 to {experts - 1}", field="physical_to_logical_map")
    now, zeros = np.full(ranks, time_s), np.zeros(ranks, dtype=np.int64)
    never = np.zeros(ranks, dtype=np.bool_)
    known = Ranks(
        status=np.zeros(ranks, dtype=np.int8),
        beat_s=now,
        progress=zeros,
        progress_s=now,
        waiting=never,
        waits_for=np.full(ranks, NOBODY),
        loading=never,
        exited=never,
        own_s=np.full(ranks, np.nan),
        paces=np.full((ranks, _WINDOWS), np.nan),
        few=never,
        past=np.full((_PAST_WINDOWS, ranks, 2), np.nan),
        admitted_s=now,
        fenced_s=np.full(ranks, -np.inf),
        wait_s=np.zeros(ranks),
        relief=np.ones(ranks),
        cool=zeros,
        power_w=np.full(ranks, np.nan),
    )
    return State(
        deployment=deployment,
        policy=policy,
        time_s=time_s,
        epoch=epoch,
        ranks=known,
        blames=(),
        slot_map=slot_map.astype(np.int64).reshape(layers, ranks, slot_map.shape[1] // ranks),
        planned_slots=slot_map.shape[1] // ranks,
        num_slots=slot_map.shape[1] // ranks,
        pending=(),
        pending_s=time_s,
        pending_reason="recovery",
        unfit=None,
        forecast=empty_forecast(layers, experts),
        drift=no_drift(slot_map.astype(np.int64), experts),
        refused=(),
        standing_back=False,
        superseded=False,
        asked=(),
        asked_s=time_s,
        demands=(),
        backlog_tokens=0.0,
        backlog_s=None,
        tpot_s=None,
        speed_placed=np.ones(ranks),
        limit=None,
        recoveries=0,
        moves=0,
        zombie_words=0,
    )


def wanted_map(state: State) -> SlotMap:
    """Return the slot map, [layers, ranks, slots], as it is when all pending moves are done."""
    found = state.slot_map.copy()
    for move in state.pending:
        found[move.layer, move.rank, move.slot] = move.expert
    return found[:, :, : state.num_slots]


def begun_anew(state: State, slot_map: SlotMap, *, time_s: float) -> State:
    """Return the state when all ranks have been started anew, under a later epoch.

    What was counted goes on, and the limit that was set is still set.
    """
    fresh = initial_state(state.deployment, state.policy, slot_map, time_s=time_s, epoch=state.epoch + 1)
    kept = ("recoveries", "moves", "zombie_words", "limit")
    return replace(fresh, **{name: getattr(state, name) for name in kept})
