"""The work of `moiety place`: read, solve, measure, compare, and count what a previous placement must move."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from moiety.cli.place_files import check_previous, gpu_speeds, load_routing
from moiety.cli.place_machine import MOST_SLOTS, Machine, check_memory
from moiety.cli.place_result import MIGRATION, Moved, Placed
from moiety.errors import InputError
from moiety.placement.engine_map import moe_layers
from moiety.placement.methods.table import METHODS
from moiety.placement.metrics import measure
from moiety.placement.migration.cost import CopyLinks, copies_between, port_bytes, port_time_s, settled
from moiety.placement.migration.holding_cost import holding_cost
from moiety.placement.migration.migration import migrate
from moiety.placement.placement import Placement
from moiety.placement.problem import placement_problem
from moiety.workload.routing import windowed

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.cli.place_files import Previous
    from moiety.placement.metrics import PlacementMetrics
    from moiety.placement.migration.order import Move
    from moiety.placement.problem import PlacementProblem, SlotMap
    from moiety.workload.routing import Routing

Result = TypeVar("Result")
_OPTIONS = frozenset({"experts", "gpu-speed", "groups", "max-moves", "nodes", "slots", "windows"})
"""Fields that the placement's own errors call as the options do, without the dashes."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the options ask for."""

    routing: str
    machine: Machine
    method: str
    slots: int | None = None
    experts: int | None = None
    windows: int | None = None
    groups: int | None = None
    gpu_speed: str | None = None
    compare: str | None = None
    previous: Previous | None = None
    max_moves: int | None = None


@dataclass(slots=True)
class _Clock:
    """Seconds of each part of the work; `progress` hears of every part that is done."""

    num_parts: int
    progress: Callable[[int, int], None] | None
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    done: int = 0

    def timed(self, name: str, work: Callable[[], Result]) -> Result:
        """Return what the work returns, its time noted under a name."""
        start = perf_counter()
        result = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.num_parts)
        return result


def place_experts(request: Request, progress: Callable[[int, int], None] | None) -> Placed:
    """Return the placement that the options ask for, with its figures; raise InputError where it cannot be."""
    clock = _Clock(3 + 2 * (request.compare is not None) + (request.previous is not None), progress)
    try:
        routing = clock.timed("read", lambda: _routing(request))
        problem = _problem(request, routing)
        return _placed(request, routing, problem, clock)
    except InputError as error:
        if error.field not in _OPTIONS:
            raise
        option = f"--{error.field}"
        raise InputError(
            error.rule, source=error.source, field=option, value=error.value, remedy=error.remedy
        ) from None


def _routing(request: Request) -> Routing:
    machine = request.machine
    known = machine.num_experts
    if known is not None and request.experts not in {None, known}:
        rule = f"disagrees with --model, which has {known}"
        raise InputError(rule, field="experts", value=request.experts)
    routing = load_routing(request.routing, machine.model, known or request.experts)
    return routing if request.windows is None else windowed(routing, request.windows)


def _problem(request: Request, routing: Routing) -> PlacementProblem:
    machine = request.machine
    moe = None if machine.model is None else machine.model.moe
    previous, slots = request.previous, request.slots
    if previous is not None:
        held = check_previous(previous, routing, machine.model, machine.num_gpus).shape[1]
        if slots not in {None, held}:
            raise InputError(f"has {held} slots, not {slots}", source=previous.source, field="slots")
        slots = held
    if slots is not None and slots > MOST_SLOTS:
        raise InputError(f"at most {MOST_SLOTS:,} slots a layer are placed", field="slots", value=slots)
    problem = placement_problem(
        routing,
        num_gpus=machine.num_gpus,
        num_nodes=machine.num_nodes,
        num_slots=slots,
        num_groups=request.groups or (1 if moe is None else moe.num_groups),
        gpu_speed=None if request.gpu_speed is None else gpu_speeds(request.gpu_speed, machine.num_gpus),
        node_distance=machine.node_distance(),
        source=request.routing,
    )
    check_memory(machine, problem)
    return problem


def _placed(request: Request, routing: Routing, problem: PlacementProblem, clock: _Clock) -> Placed:
    model = request.machine.model
    slot_map, moves, previous = clock.timed("solve", lambda: _solved(request, routing, problem))
    compared = None
    if request.compare is not None:
        compared = _compared(request.compare, request.method, slot_map, problem, clock, fresh=moves is None)
    versus = None if compared is None else (compared[0], compared[2])
    metrics = clock.timed("measure", lambda: measure(problem, slot_map, sequence=routing.sequence, versus=versus))
    moved = None
    if previous is not None:
        before = clock.timed("measure", lambda: measure(problem, previous))
        moved = _moved(request, problem, (previous, slot_map), before, moves)
    return Placed(
        source=request.routing,
        machine=request.machine,
        problem=problem,
        slot_map=slot_map,
        placement=Placement(
            method=request.method if moves is None else MIGRATION,
            layers=tuple(range(problem.num_layers)) if model is None else moe_layers(model),
            physical_to_logical_map=tuple(tuple(row) for row in slot_map.tolist()),
            num_gpus=problem.num_gpus,
            num_nodes=problem.num_nodes,
            num_logical_experts=problem.num_experts,
        ),
        metrics=metrics,
        compared=compared,
        moved=moved,
        seconds=clock.seconds,
    )


def _solved(
    request: Request, routing: Routing, problem: PlacementProblem
) -> tuple[SlotMap, tuple[Move, ...] | None, SlotMap | None]:
    """Return the map, its moves where these are limited, and the previous map.

    With a limit the moves are chosen one by one; without it the method's own map stands, each GPU's experts in the
    slots that they had.
    """
    if request.previous is None:
        return METHODS[request.method](problem), None, None
    previous = check_previous(request.previous, routing, request.machine.model, problem.num_gpus)
    if request.max_moves is None:
        return settled(problem, previous, METHODS[request.method](problem)), None, previous
    worth = holding_cost(problem, previous)
    migration = migrate(problem, previous, max_moves=request.max_moves, holding_cost=worth)
    return migration.slot_map, migration.moves, previous


def _compared(
    name: str, method: str, slot_map: SlotMap, problem: PlacementProblem, clock: _Clock, *, fresh: bool
) -> tuple[str, SlotMap, PlacementMetrics]:
    other = clock.timed("compare", lambda: slot_map if fresh and name == method else METHODS[name](problem))
    return name, other, clock.timed("measure", lambda: measure(problem, other))


def _moved(
    request: Request,
    problem: PlacementProblem,
    maps: tuple[SlotMap, SlotMap],
    before: PlacementMetrics,
    moves: tuple[Move, ...] | None,
) -> Moved:
    previous, slot_map = maps
    cluster, size = request.machine.cluster, request.machine.expert_bytes
    sent = port_bytes(problem, copies_between(problem, previous, slot_map), 1.0)  # in experts
    tiers = sent[:, :, 0].sum(axis=(0, 2))
    seconds = None
    if cluster is not None and size is not None:
        outer = min(1, len(cluster.tiers) - 1)
        links = CopyLinks(size, cluster.bandwidth_per_gpu(0), cluster.bandwidth_per_gpu(outer))
        seconds = float(port_time_s(sent.sum(axis=0, keepdims=True) * size, links)[0])
    return Moved(
        previous=previous,
        before=before,
        max_moves=request.max_moves,
        moves_per_layer=tuple((slot_map != previous).sum(axis=1).tolist()),
        num_copies=int(tiers.sum()),
        size_bytes=None if size is None else float(tiers.sum()) * size,
        network_bytes=None if size is None else float(tiers[1]) * size,
        time_s=seconds,
        moves=moves,
    )
