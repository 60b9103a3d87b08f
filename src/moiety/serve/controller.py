"""The controller: the control plane's pure core at work on a crew: events in, decisions out, and carried out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from moiety.control.apply import apply
from moiety.control.commands import (
    AbortStep,
    Admit,
    CapPower,
    Drain,
    Fence,
    LockClock,
    MoveExperts,
    Park,
    Refuse,
    ScaleUp,
)
from moiety.control.decide import RULES_BESIDE_SEARCH, settle
from moiety.control.events import Exited, ExpertCounts, Issued, Joined, Parted, Unfit
from moiety.control.health import is_judged, slowness
from moiety.control.metrics import metrics_text
from moiety.control.state import Status, begun_anew, initial_state, wanted_map
from moiety.errors import InputError
from moiety.runtime.elastic import events as crew_events
from moiety.runtime.elastic.replan import CoverageLostError
from moiety.runtime.serving.order import StepAnswer
from moiety.serve.pace import Pace, step_times
from moiety.serve.searcher import Searcher
from moiety.serve.traffic import Traffic, Users
from moiety.serve.translation import done_moves, heartbeats, positions, slot_moves, told, whole_map
from moiety.serve.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moiety.control.commands import Command
    from moiety.control.events import Event
    from moiety.control.policy import Policy
    from moiety.control.state import State
    from moiety.placement.problem import Loads, SlotMap
    from moiety.plan import Plan
    from moiety.runtime.elastic.crew import Crew
    from moiety.serve.clocks import Clocks
    from moiety.serve.looked_after import LookedAfter
    from moiety.strategy.strategy import Strategy

_MEETINGS = (Fence, AbortStep, Admit, Drain, Park)
"""Commands that begin a new epoch: the ranks meet anew."""


class Controller:
    """Leads the crews of `Ranks` (see `Lead`); nothing but the core decides, and nothing is known but its state."""

    def __init__(self, of: LookedAfter, policy: Policy, clocks: Clocks, note: Callable[[str], None]) -> None:
        self._of, self._policy, self.clocks, self._note = of, policy, clocks, note
        self.users = Users()
        """What users see, as the event loop says."""
        self._traffic = Traffic(self.users)
        self._state: State | None = None
        self._searcher = Searcher()
        self._is_founded = False
        """Whether the crew has declared its first generation."""
        self._losses: list[str] = []
        """Words on the losses since ranks were ready last."""
        self._refusal: str | None = None
        self._is_in: set[int] = set()
        """Homes that have a process that can be declared."""
        self._window = Window(time.monotonic())
        self._pace = Pace(0, 0.0)
        self._expert_tokens: Loads | None = None
        """How many tokens have chosen each expert so far, [layers, experts], as far as ranks have said it."""
        self._exposed_s: dict[int, float] = {}
        """Of each rank, as far as its steps are timed: seconds of them in which it only waited for transfers."""
        self._num_windows = 0
        """Windows whose counts the core has heard."""

    # What others see of it; any thread -----------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Number of the membership in force; 0 before the first."""
        return 0 if self._state is None else self._state.epoch

    @property
    def refusal(self) -> str | None:
        """Why nothing can be served for now; None where all can be."""
        return self._refusal

    def asks_counts(self) -> bool:
        """Return whether a window is over, so that the next step shall bring the experts' counts."""
        if not self._of.deployment.num_layers:
            return False
        return self._window.asks(self._policy.window_s, time.monotonic())

    def metrics_text(self) -> str:
        """Return the metrics of the state in Prometheus' text format; nothing before there is one."""
        return "" if self._state is None else metrics_text(self._state, self._expert_tokens, dict(self._exposed_s))

    def own_step_s(self, home: int) -> float | None:
        """Return the seconds of a step that the rank of a home works by itself; None where that is not known."""
        if self._state is None:
            return None
        own_s = float(self._state.ranks.own_s[self._of.rank_of(home)])
        return None if np.isnan(own_s) else own_s

    def summary(self) -> dict[str, object]:
        """Return what is known of the ranks, in short."""
        state = self._state
        if state is None:
            return {}
        return {
            "statuses": [Status(each).name.lower() for each in state.ranks.status.tolist()],
            "slowness": [round(each, 2) for each in slowness(state).tolist()],
            "is_pace_known": is_judged(state).tolist(),
            "windows": self._num_windows,
            "moves": state.moves,
            "pending_moves": len(state.pending),
            "refused_experts": [list(each) for each in state.refused],
        }

    # In the crew's thread -------------------------------------------------------------------------------------------

    def begin(self) -> int:
        """Hear of a new crew; return the number of its first generation."""
        self._is_founded, self._refusal, self._is_in = False, None, set()
        return self.epoch + 1

    def turn(self, crew: Crew, events: Sequence[crew_events.Event]) -> None:
        """Hear what has happened, decide, and have the crew do it; raise CoverageLostError where it cannot go on."""
        now_s = time.monotonic()
        homes = [each.home for each in crew.ranks()]
        for event in events:
            self._hear(event, crew, homes, now_s)
        if self._state is None or not self._is_founded:
            return
        heard: list[float] = self._state.ranks.beat_s.tolist()
        for beat in heartbeats(crew.signs(), self._of, homes, heard):
            self._tell(beat)
        requests = self._traffic.metrics(self._policy.window_s, now_s)
        if requests is not None:
            self._tell(requests)
        self._state, commands = self._decided(self._state, now_s)
        if commands:
            self._carry_out(commands, crew, homes)

    def slot_map_with(self, home: int) -> SlotMap | None:
        """Return where experts would be if the rank of a home, its group, and all that wait were taken in now."""
        state, of = self._state, self._of
        if state is None or not of.deployment.num_layers:
            return None
        rank, width = of.rank_of(home), of.deployment.group_ranks
        group = range(rank // width * width, (rank // width + 1) * width)
        waiting = np.flatnonzero(state.ranks.status == Status.JOINING).tolist()
        coming = tuple({*waiting, *(each for each in group if not state.ranks.working[each])})
        now_s = time.monotonic()
        admitted = apply(Issued(now_s, Admit(state.epoch + 1, coming)), state)
        state, _ = settle(admitted, now_s, RULES_BESIDE_SEARCH)
        return None if state.refused else wanted_map(state)

    def _decided(self, state: State, now_s: float) -> tuple[State, tuple[Command, ...]]:
        """Return the state when all is decided that can be now, and what was; searches go on beside."""
        state, commands = settle(state, now_s, RULES_BESIDE_SEARCH)
        moves = self._searcher.moves_for(state)
        if moves is None:
            return state, commands
        state, more = settle(apply(Issued(now_s, moves), state), now_s, RULES_BESIDE_SEARCH)
        return state, (*commands, moves, *more)

    def _tell(self, event: Event) -> None:
        assert self._state is not None, "there is a state from the first generation on"
        self._state = apply(event, self._state)

    def _hear(self, event: crew_events.Event, crew: Crew, homes: Sequence[int], now_s: float) -> None:
        """Take in one event of the crew; `homes` are those of the generation in force, by rank."""
        if isinstance(event, crew_events.Declared):
            self._window, self._pace = Window(now_s), Pace(event.plan.num_gpus, now_s)
            self._traffic.pause()
            if not self._is_founded:
                self._found(event, now_s)
            return
        if self._state is None or not self._is_founded:
            return
        if isinstance(event, (crew_events.Ready, crew_events.Switched)):
            self._losses.clear()
            if isinstance(event, crew_events.Ready):
                self._traffic.begin(now_s)
            if event.generation == self._state.epoch:
                self._report_moves(event.plan, homes, now_s)
        elif isinstance(event, crew_events.Said):
            answer = StepAnswer.model_validate(event.payload)
            strategy = crew.plan.pools[0].strategy
            if event.generation == self._state.epoch:
                self._time(event.rank, answer, crew.plan, homes, now_s)
            self._count(answer, strategy, now_s)
        else:
            self._hear_of_processes(event, self._state, homes, now_s)

    def _hear_of_processes(self, event: crew_events.Event, state: State, homes: Sequence[int], now_s: float) -> None:
        if isinstance(event, crew_events.Lost):
            self._losses.append(event.message)
            self._is_in.discard(event.home)
            self._tell(Exited(now_s, self._of.rank_of(event.home), event.message))
        elif isinstance(event, crew_events.Joined):
            self._is_in.add(event.home)
            rank = self._of.rank_of(event.home)
            if self._is_in.issuperset(self._of.homes_of(rank)):
                self._tell(Joined(now_s, rank))
        elif isinstance(event, crew_events.Parted) and event.generation == state.epoch and event.peer is not None:
            rank, peer = (self._of.rank_of(homes[each]) for each in (event.rank, event.peer))
            self._tell(Parted(now_s, rank, event.generation, peer))

    def _found(self, event: crew_events.Declared, now_s: float) -> None:
        """Begin with the state of a crew all of whose ranks have shown a sign of life."""
        deployment, before = self._of.deployment, self._state
        if before is None:
            self._state = initial_state(
                deployment, self._policy, self._of.slot_map, time_s=now_s, epoch=event.generation
            )
        else:
            self._state = begun_anew(before, self._of.slot_map, time_s=now_s)
        self._is_founded = True
        self._is_in = set(range(deployment.num_ranks * self._of.gpus_per_rank))

    def _report_moves(self, plan: Plan, homes: Sequence[int], now_s: float) -> None:
        placement, state = plan.pools[0].placement, self._state
        if placement is not None and state is not None and self._of.deployment.num_layers:
            for moved in done_moves(state, placement, positions(self._of, homes), now_s):
                self._tell(moved)

    def _time(self, rank: int, answer: StepAnswer, plan: Plan, homes: Sequence[int], now_s: float) -> None:
        """Add up what ranks take for their steps; ranks of different instances do not do the same ones."""
        if answer.work is None:
            return
        of_rank = self._of.rank_of(homes[rank])
        exposed_s = answer.work.exposed_s / self._of.gpus_per_rank
        self._exposed_s[of_rank] = self._exposed_s.get(of_rank, 0.0) + exposed_s
        if plan.pools[0].strategy.instances > 1:
            return
        means = self._pace.take(rank, answer.work, now_s)
        if means is not None:
            self._tell(step_times(means, self._of, homes, plan, self.epoch, now_s))

    def _count(self, answer: StepAnswer, strategy: Strategy, now_s: float) -> None:
        """Add up what the experts were asked for; tell it when the window is complete."""
        if not answer.counts:
            return
        own = np.array(answer.counts, dtype=np.float64)
        self._expert_tokens = own if self._expert_tokens is None else self._expert_tokens + own
        counts = self._window.take(own, strategy.attn_dp, now_s)
        if counts is not None:
            self._window = Window(now_s)
            self._tell(ExpertCounts(now_s, counts))
            self._num_windows += 1

    def _carry_out(self, commands: Sequence[Command], crew: Crew, homes: Sequence[int]) -> None:
        """Have the crew do what was decided; what belongs to one new epoch is done in one meeting."""
        state = self._state
        assert state is not None, "it has decided"
        meets = any(isinstance(each, _MEETINGS) for each in commands)
        for each in commands:
            if isinstance(each, MoveExperts) and not meets and not state.refused:
                self._move(each, crew, homes)
            else:
                self._carry_out_alone(each, crew)
        for words in filter(None, map(told, commands)):
            self._note(words)
        if not state.ranks.members.any():
            raise CoverageLostError("; ".join(("no rank is left", *self._losses)))
        refusals = [each.reason for each in commands if isinstance(each, Refuse)]
        if refusals:
            self._refusal = "; ".join((*refusals, *self._losses))
        if state.refused:
            return
        self._refusal = None
        if meets:
            self._meet(crew)
            self._dismiss([rank for each in commands if isinstance(each, Park) for rank in each.ranks], crew)

    def _carry_out_alone(self, command: Command, crew: Crew) -> None:
        """Have done what needs no meeting, and goes before one."""
        if isinstance(command, Fence):
            self._fence(command, crew)
        elif isinstance(command, ScaleUp):
            self._call(command, crew)
        elif isinstance(command, (LockClock, CapPower)):
            self.clocks.follow(command)

    def _fence(self, command: Fence, crew: Crew) -> None:
        for rank in command.failed:
            for home in self._of.homes_of(rank):
                crew.fence(home, f"was fenced: {command.reason}")
                self._is_in.discard(home)
        for rank in set(command.ranks) - set(command.failed):  # they live, and stand by for their group
            self._tell(Joined(time.monotonic(), rank))

    def _meet(self, crew: Crew) -> None:
        """Have the ranks that work meet in the epoch in force, with the experts that they are to have."""
        state, of = self._state, self._of
        assert state is not None, "it has decided"
        homes = [home for rank in np.flatnonzero(state.ranks.members).tolist() for home in of.homes_of(rank)]
        slot_map = whole_map(state) if of.deployment.num_layers else None
        try:
            crew.regroup(state.epoch, homes, slot_map)
        except CoverageLostError as error:
            raise CoverageLostError("; ".join((str(error), *self._losses))) from None

    def _dismiss(self, ranks: Sequence[int], crew: Crew) -> None:
        """End the processes of ranks that have met the others for the last time."""
        for home in (home for rank in ranks for home in self._of.homes_of(rank)):
            self._is_in.discard(home)
            crew.dismiss(home)

    def _call(self, command: ScaleUp, crew: Crew) -> None:
        """Start the processes of ranks that are to come back."""
        for home in (home for rank in command.ranks for home in self._of.homes_of(rank)):
            crew.rejoin(self.slot_map_with(home), home)

    def _move(self, command: MoveExperts, crew: Crew, homes: Sequence[int]) -> None:
        placement = crew.plan.pools[0].placement
        if not command.moves or placement is None or crew.is_moving:
            return
        try:
            crew.migrate(slot_moves(command.moves, placement, positions(self._of, homes)))
        except InputError as error:
            self._note(f"moves do not fit what the ranks hold, and are decided anew: {error}")
            self._tell(Unfit(time.monotonic(), self.epoch, str(error)))
