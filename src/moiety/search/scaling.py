"""Scaling: the same work on more GPUs (strong) and more work on more GPUs (weak), and what stops it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from moiety.cluster.resize import resized
from moiety.errors import InputError
from moiety.projection.scenario import scenario_of
from moiety.records import Record
from moiety.search.planner import replan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.calibration.calibration import Calibration
    from moiety.plan import Plan
    from moiety.workload.workload import Workload

_LINEAR = 0.9


class ScalePoint(Record):
    """The best plan of one size."""

    scaling: Literal["strong", "weak"]
    num_gpus: int
    strategy: str
    throughput_tokens_per_s: float | None
    """None where nothing works at that size."""
    efficiency: float | None
    """Throughput per GPU relative to the smallest size that works."""
    exposed_communication_fraction: float | None
    limited_by: str
    """What keeps it from scaling; empty while it is linear (efficiency of at least 0.9)."""


def scale(plan: Plan, sizes: Sequence[int], calibration: Calibration) -> tuple[ScalePoint, ...]:
    """Return strong and weak scaling over `sizes`, each planned anew; weak scaling keeps the load per GPU."""
    points: list[ScalePoint] = []
    kinds: tuple[Literal["strong", "weak"], ...] = ("strong", "weak")
    for scaling in kinds:
        first: tuple[Plan, int] | None = None
        for gpus in sorted(set(sizes)):
            workload = (
                plan.workload if scaling == "strong" else scaled_load(plan.workload, gpus / plan.cluster.num_gpus)
            )
            scenario = scenario_of(plan, calibration)
            scenario = replace(scenario, cluster=resized(plan.cluster, gpus), workload=workload)
            try:
                made = replan(plan, calibration, scenario).plan
            except InputError as error:
                points.append(_failed(scaling, gpus, error))
                continue
            first = first or (made, gpus)
            points.append(_point(scaling, gpus, made, first))
    return tuple(points)


def scaled_load(workload: Workload, factor: float) -> Workload:
    """Return the workload with `factor` times its load."""
    for name in ("tokens_in_flight", "concurrency", "request_rate_per_s"):
        load = getattr(workload, name)
        if load is not None:
            changed = load * factor if name == "request_rate_per_s" else max(round(load * factor), 1)
            return workload.model_copy(update={name: changed})
    return workload


def _failed(scaling: Literal["strong", "weak"], gpus: int, error: InputError) -> ScalePoint:
    return ScalePoint(
        scaling=scaling,
        num_gpus=gpus,
        strategy="",
        throughput_tokens_per_s=None,
        efficiency=None,
        exposed_communication_fraction=None,
        limited_by=error.rule,
    )


def _point(scaling: Literal["strong", "weak"], gpus: int, made: Plan, first: tuple[Plan, int]) -> ScalePoint:
    projection, reference = made.projection, first[0].projection
    assert projection is not None, "re-planned plans are evaluated"
    assert reference is not None, "re-planned plans are evaluated"
    efficiency = projection.throughput_tokens_per_s_per_gpu / reference.throughput_tokens_per_s_per_gpu
    return ScalePoint(
        scaling=scaling,
        num_gpus=gpus,
        strategy=" + ".join(pool.strategy.name for pool in made.pools),
        throughput_tokens_per_s=projection.throughput_tokens_per_s,
        efficiency=efficiency,
        exposed_communication_fraction=projection.exposed_communication_fraction,
        limited_by="" if efficiency >= _LINEAR else _limit(made, first[0]),
    )


def _limit(made: Plan, reference: Plan) -> str:
    """Return what grew most as a share of the step: communication that nothing hides, or work that does not shrink."""
    now, before = made.projection, reference.projection
    assert now is not None, "re-planned plans are evaluated"
    assert before is not None, "re-planned plans are evaluated"
    exposed = now.exposed_communication_fraction - before.exposed_communication_fraction
    tokens = made.pools[-1].schedule.tokens_per_step, reference.pools[-1].schedule.tokens_per_step
    lost = 1 - now.model_flops_utilization / before.model_flops_utilization if before.model_flops_utilization else 0.0
    if exposed > lost / 2:
        return (
            f"exposed communication rises from {before.exposed_communication_fraction:.1%} to "
            f"{now.exposed_communication_fraction:.1%} of the step"
        )
    return (
        f"weights are read and kernels started for fewer tokens: {tokens[0]:,} tokens a group and step "
        f"instead of {tokens[1]:,}"
    )
