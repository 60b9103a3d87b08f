"""A method's map for the experts of a stage, and what a trace makes of it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from moiety.errors import InputError, nearest
from moiety.placement.methods.table import METHODS, QUICK
from moiety.placement.metrics import gpu_loads
from moiety.placement.placement import Placement
from moiety.placement.problem import placement_problem
from moiety.placement.serving.routed_traffic import DomainReach, MeasuredPlacement, RoutedTraffic
from moiety.placement.serving.rule import serve
from moiety.placement.serving.traffic import traffic

if TYPE_CHECKING:
    from moiety.placement.problem import Loads, PlacementProblem, SlotMap
    from moiety.placement.serving.rule import Indices, Integers
    from moiety.placement.stage_shape import StageShape
    from moiety.workload.routing import Routing

COMPARED = ("linear", "eplb-global")
"""Methods that a measured placement is shown beside."""


@lru_cache(maxsize=128)
def solved(
    routing: Routing, shape: StageShape, method: str, max_served: int | None = None, *, quick: bool = False
) -> Placement:
    """Return a method's placement of a stage's experts; the same question is answered once.

    `routing` has a row for each of the stage's MoE layers. With `max_served` the tokens' own choices take part and the
    traffic is measured, at most that many (layer, token) of the trace being served; else only the loads count. A
    `quick` answer does without the long search that some methods make. Raises InputError for a method that there is
    not.
    """
    traced = max_served is not None
    problem = _problem(routing, shape, traced=traced)
    slots = _slot_map(routing, shape, method, traced=traced, quick=quick)
    measured = None
    if max_served is not None and problem.topk is not None and shape.domain_gpus is not None:
        measured = _measured(problem, slots, shape, max_served)
    return Placement(
        method=method,
        layers=shape.layers,
        physical_to_logical_map=tuple(tuple(row) for row in slots.tolist()),
        num_gpus=shape.num_gpus,
        num_nodes=shape.num_nodes,
        num_logical_experts=shape.num_experts,
        expert_tp=shape.expert_tp,
        traffic=measured,
    )


@lru_cache(maxsize=32)
def compared(routing: Routing, shape: StageShape, max_served: int) -> tuple[MeasuredPlacement, ...]:
    """Return what the trace makes of the methods that a placement is shown beside; nothing without a trace."""
    if routing.topk is None or shape.domain_gpus is None:
        return ()
    problem = _problem(routing, shape, traced=True)
    found: list[MeasuredPlacement] = []
    for method in COMPARED:
        slots = _slot_map(routing, shape, method, traced=True)
        measured = _measured(problem, slots, shape, max_served)
        loads = np.array(measured.rank_loads) if measured.rank_loads else gpu_loads(problem, slots).mean(axis=0)
        even = float((loads.mean(axis=1) / loads.max(axis=1)).mean())
        found.append(MeasuredPlacement(method=method, balance=min(even, 1.0), traffic=measured))
    return tuple(found)


def _problem(routing: Routing, shape: StageShape, *, traced: bool) -> PlacementProblem:
    problem = placement_problem(
        routing,
        num_gpus=shape.num_ranks,
        num_nodes=shape.num_domains,
        num_slots=shape.num_slots,
        num_groups=shape.num_groups,
        node_distance=None if shape.domain_distance is None else np.array(shape.domain_distance),
    )
    return problem if traced else replace(problem, topk=None)


@lru_cache(maxsize=128)
def _slot_map(routing: Routing, shape: StageShape, method: str, *, traced: bool, quick: bool = False) -> SlotMap:
    """Return a method's map; it is solved once, however often it is measured."""
    solve = (QUICK if quick else METHODS).get(method)
    if solve is None:
        raise InputError("no such placement method", field="placement", value=method, remedy=nearest(method, METHODS))
    return solve(_problem(routing, shape, traced=traced))


def _measured(problem: PlacementProblem, slots: SlotMap, shape: StageShape, max_served: int) -> RoutedTraffic:
    """Return what the trace's tokens reach under a map."""
    assert problem.topk is not None, "traffic is measured on tokens"
    assert shape.domain_gpus is not None, "experts lie in one domain each"
    served = traffic(problem, slots, rules=("cover",), max_served=max_served).served["cover"]
    sample = _sample(problem.topk, max_served)
    widths = [width // shape.domain_gpus[0] for width in shape.domain_gpus]  # in innermost domains
    has_copies = problem.num_slots > problem.num_experts
    choices = _choices(problem, slots, sample) if has_copies or len(widths) > 1 else []
    found: list[DomainReach] = []
    for level, width in enumerate(widths):
        group = np.arange(problem.num_nodes) // width
        away = group[:, None] != group[None, :]
        each = (served.messages, served.gpus, served.nodes)
        messages, ranks, nodes = (float((matrices * away).sum(axis=(1, 2)).mean()) for matrices in each)
        domains = nodes if level == 0 else _distinct_outside(problem, choices, width, width)
        narrower = ranks
        if level == 1:
            narrower = nodes
        elif level > 1:
            narrower = _distinct_outside(problem, choices, widths[level - 1], width)
        ranks = min(ranks, messages)
        found.append(
            DomainReach(
                num_gpus=shape.domain_gpus[level],
                messages=round(messages, 6),
                ranks=round(ranks, 6),
                narrower=round(min(narrower, ranks), 6),
                domains=round(min(domains, ranks), 6),
            )
        )
    return RoutedTraffic(
        top_k=problem.topk.shape[2],
        reached_ranks=round(float(served.reached_gpus.mean()), 6),
        domains=tuple(found),
        num_tokens=problem.topk.shape[1],
        rank_loads=_rank_loads(problem, slots, sample, choices) if has_copies else (),
    )


def _sample(topk: Integers, max_served: int) -> Integers:
    """Return the tokens to serve, at equal distances, [layers, tokens, k]."""
    num_layers, num_tokens, _ = topk.shape
    wanted = max(max_served // num_layers, 1)
    return topk if wanted >= num_tokens else topk[:, np.arange(wanted) * num_tokens // wanted]


def _choices(problem: PlacementProblem, slots: SlotMap, sample: Integers) -> list[Indices]:
    """Return the slot that serves each (token, expert), [tokens, k] by layer; token t starts from node t mod N."""
    index = np.arange(sample.shape[1], dtype=np.int64)
    return [
        serve(
            row,
            experts,
            index % problem.num_nodes,
            index // problem.num_nodes,
            num_gpus=problem.num_gpus,
            num_nodes=problem.num_nodes,
            node_distance=problem.node_distance,
        )
        for row, experts in zip(slots, sample, strict=True)
    ]


def _distinct_outside(problem: PlacementProblem, choices: list[Indices], width: int, outside: int) -> float:
    """Return how many domains of `width` nodes a token reaches outside its home's domain of `outside` nodes."""
    found = 0
    for slots in choices:
        node = slots // problem.slots_per_node
        home = (np.arange(len(slots)) % problem.num_nodes)[:, None]
        far = node // outside != home // outside
        domain = np.sort(np.where(far, node // width, -1), axis=1)
        found += int((domain[:, 0] >= 0).sum() + ((domain[:, 1:] != domain[:, :-1]) & (domain[:, 1:] >= 0)).sum())
    return found / sum(len(slots) for slots in choices)


def _rank_loads(
    problem: PlacementProblem, slots: SlotMap, sample: Integers, choices: list[Indices]
) -> tuple[tuple[float, ...], ...]:
    """Return what each rank serves relative to the mean, [layers][ranks].

    The sample says how an expert's tokens divide over its copies; the expert's own share is that of the whole trace, so
    that a sample's scatter is not taken for imbalance.
    """
    shares = problem.shares().mean(axis=0)
    loads: list[Loads] = []
    for row, experts, chosen, share in zip(slots, sample, choices, shares, strict=True):
        count = np.bincount(experts.ravel(), minlength=problem.num_experts)
        taken = np.bincount(chosen.ravel(), minlength=problem.num_slots)
        copies = np.bincount(row, minlength=problem.num_experts)
        part = np.where(count[row] > 0, taken / np.maximum(count[row], 1), 1 / copies[row])
        loads.append((share[row] * part).reshape(problem.num_gpus, -1).sum(axis=1) * problem.num_gpus)
    return tuple(tuple(round(load, 4) for load in layer.tolist()) for layer in loads)
