"""What-ifs about a finished plan: failures, another number of GPUs, options taken away, scaling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moiety.cluster.resize import resized
from moiety.errors import InputError
from moiety.projection.scenario import scenario_of
from moiety.search.ablation import ablate
from moiety.search.failure import degrade, parse_failures, with_links
from moiety.search.operation import interruptions, priced, skewed
from moiety.search.planner import replan
from moiety.search.scaling import scale

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moiety.calibration.calibration import Calibration
    from moiety.cli.output import Output
    from moiety.cli.serving_load import Served
    from moiety.cluster.cluster import Cluster
    from moiety.plan import Plan, Projection
    from moiety.projection.project import Evaluation
    from moiety.search.ablation import OptionWorth
    from moiety.search.failure import Degradation
    from moiety.search.operation import Interruptions, Price
    from moiety.search.scaling import ScalePoint
    from moiety.sim.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Failure:
    """A plan after failures: as it goes on at once, and planned anew on what is whole."""

    degradation: Degradation
    replanned: Plan | None
    why_not_replanned: str
    """Why nothing can be planned on what is left; empty where it can."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What was asked about a plan; None where it was not."""

    failure: Failure | None = None
    resized: Plan | None = None
    ablation: tuple[OptionWorth, ...] | None = None
    scaling: tuple[ScalePoint, ...] | None = None
    skewed: Projection | None = None
    price: Price | None = None
    interruptions: Interruptions | None = None
    serving: Served | None = None

    def document(self) -> dict[str, object]:
        """Return the answers for a JSON document; what was not asked for is null."""
        failure = self.failure
        return {
            "failure": None
            if failure is None
            else {
                "degraded": failure.degradation.model_dump(mode="json"),
                "replanned": summary(failure.replanned),
                "why_not_replanned": failure.why_not_replanned,
            },
            "resized": summary(self.resized),
            "ablation": None if self.ablation is None else [each.model_dump(mode="json") for each in self.ablation],
            "scaling": None if self.scaling is None else [each.model_dump(mode="json") for each in self.scaling],
            "skewed": _dumped(self.skewed),
            "price": _dumped(self.price),
            "interruptions": _dumped(self.interruptions),
            "serving": None if self.serving is None else self.serving.document(),
        }


@dataclass(frozen=True, slots=True)
class WhatIf:
    """An evaluated plan, and the questions that can be asked about it."""

    plan: Plan
    calibration: Calibration
    output: Output

    def failure(self, texts: Sequence[str]) -> Failure:
        """Return what the plan does after failures, and the plan made anew for the survivors."""
        degradation = degrade(self.plan, texts, self.calibration)
        broken = parse_failures(texts, self.plan.cluster)
        slower = with_links(self.plan.cluster, broken.link_shares)
        best: Plan | None = None
        why_not = "no whole node is left"
        self._say_what_is_not_known()
        with self.output.progress("planning anew on what is left"):
            for size in surviving_sizes(self.plan.cluster, broken.avoided):
                try:
                    survivors = resized(slower, size) if size != slower.num_gpus else slower
                    made = self._anew(survivors)
                except InputError as error:
                    why_not = error.rule
                    continue
                if best is None or _rate(made) > _rate(best):
                    best = made
        return Failure(degradation, best, "" if best is not None else why_not)

    def resized(self, num_gpus: int) -> Plan:
        """Return the plan made anew on another number of GPUs; raise InputError where that cannot be."""
        try:
            cluster = resized(self.plan.cluster, num_gpus)
            self._say_what_is_not_known()
            with self.output.progress(f"planning anew on {num_gpus} GPUs"):
                return self._anew(cluster)
        except InputError as error:
            raise InputError(error.rule, field="--gpus", value=num_gpus, remedy=error.remedy) from None

    def _anew(self, cluster: Cluster) -> Plan:
        scenario = replace(scenario_of(self.plan, self.calibration), cluster=cluster)
        return replan(self.plan, self.calibration, scenario).plan

    def _say_what_is_not_known(self) -> None:
        """Say that plans made anew from a file have loads that were measured, but not the trace's traffic."""
        if any(pool.placement is not None and pool.placement.traffic is not None for pool in self.plan.pools):
            self.output.note(
                "note: the plan's file does not hold the trace of its tokens: plans made anew have the measured loads, "
                "and the traffic of uniform routing"
            )

    def ablation(self) -> tuple[OptionWorth, ...]:
        """Return what each option is worth."""
        with self.output.progress("taking options away"):
            return ablate(self.plan, self.calibration)

    def scaling(self, sizes: Sequence[int]) -> tuple[ScalePoint, ...]:
        """Return strong and weak scaling; raise InputError for sizes that cut nodes."""
        for size in sizes:
            try:
                resized(self.plan.cluster, size)
            except InputError as error:
                raise InputError(error.rule, field="--scale", value=size, remedy=error.remedy) from None
        self._say_what_is_not_known()
        with self.output.progress(f"planning anew for {len(sizes)} sizes"):
            return scale(self.plan, sizes, self.calibration)

    def skewed(self, skew: float) -> Projection:
        """Return the projection where the experts' loads follow a Zipf law of this exponent."""
        return skewed(self.plan, skew, self.calibration)

    def price(self, per_gpu_hour: float) -> Price:
        """Return what the plan's tokens cost."""
        return priced(self.plan, per_gpu_hour)

    def interruptions(self, repair_hours: float) -> Interruptions:
        """Return what failures cost where each lost GPU is gone for so many hours."""
        with self.output.progress("counting interruptions"):
            return interruptions(self.plan, repair_hours, self.calibration)

    def document(self, evaluation: Evaluation, answers: Answers) -> dict[str, object]:
        """Return the plan as simulated, and the answers, as one JSON document."""
        plan = self.plan
        return {
            "plan": plan.name,
            "num_gpus": plan.num_gpus,
            "projection": _dumped(plan.projection),
            "pools": [
                {
                    "role": pool.role,
                    "strategy": pool.strategy.name,
                    "num_gpus": pool.num_gpus,
                    "projection": _dumped(pool.projection),
                    "timeline": timeline_figures(phase.outcome.timeline),
                }
                for pool, phase in zip(plan.pools, evaluation.phases, strict=True)
            ],
            **answers.document(),
        }


def surviving_sizes(cluster: Cluster, broken: frozenset[int]) -> Iterator[int]:
    """Yield the numbers of GPUs worth planning for without `broken` ranks: whole domains, or part of one node."""
    node = cluster.gpus_per_node
    if cluster.num_nodes == 1:
        alive = node - len(broken)
        if alive:
            yield alive
            power = 1 << (alive.bit_length() - 1)
            if power != alive:
                yield power
        return
    widest = max([node, *(tier.num_gpus for tier in cluster.tiers[:-1])])
    whole = sum(
        not any(rank in broken for rank in range(first, first + widest)) for first in range(0, cluster.num_gpus, widest)
    )
    if whole:
        yield whole * widest


def summary(plan: Plan | None) -> dict[str, object] | None:
    """Return what another plan comes to: its size, strategy and projection."""
    if plan is None:
        return None
    return {
        "num_gpus": plan.num_gpus,
        "strategy": " + ".join(pool.strategy.name for pool in plan.pools),
        "projection": _dumped(plan.projection),
    }


def timeline_figures(timeline: Timeline | None) -> dict[str, object] | None:
    """Return the figures of a simulated step, lanes averaged over the GPUs that they stand for."""
    if timeline is None:
        return None
    weight = sum(timeline.lane_weights)

    def mean(values: Sequence[float]) -> float:
        return sum(value * own for value, own in zip(values, timeline.lane_weights, strict=True)) / weight

    return {
        "makespan_s": timeline.makespan_s,
        "critical_path_s": timeline.critical_path_s,
        "work_s": timeline.work_s,
        "compute_busy_s": mean(timeline.compute_busy_s),
        "communication_s": mean(timeline.communication_s),
        "exposed_s": mean(timeline.exposed_s),
        "exposed_communication_fraction": timeline.exposed_fraction,
        "overlap_fraction": timeline.overlap_fraction,
        "num_tasks": len(timeline.steps.tasks),
        "num_stages": timeline.steps.num_stages,
        "num_classes": timeline.steps.num_classes,
    }


def _dumped(record: object) -> object:
    from pydantic import BaseModel

    return record.model_dump(mode="json") if isinstance(record, BaseModel) else None


def _rate(plan: Plan) -> float:
    return plan.projection.throughput_tokens_per_s if plan.projection else 0.0
