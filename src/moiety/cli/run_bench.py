"""`moiety run --bench`: the plan's own step measured beside its prediction, and the constants refitted to its ops."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, cast

from moiety.cli.table import table
from moiety.cost.refit import Bench, Observation, refitted
from moiety.graph.graph import build_step_graph
from moiety.plan import Schedule
from moiety.projection.engine_step import engine_step_s
from moiety.projection.project import evaluate
from moiety.units import format_duration, format_si

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import RenderableType

    from moiety.calibration.calibration import Calibration
    from moiety.graph.graph import Graph
    from moiety.graph.op import Op
    from moiety.plan import Plan

_LATENT = ("kv_up_proj", "q_up_proj", "qkv_down_proj")
"""Ops of latent attention that a step's graph may not have, because decoding is planned in absorbed form."""


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What the ranks took for the plan's step, and what is predicted for it before and after refitting."""

    plan: Plan
    outcome: Mapping[str, object]
    before_s: float
    after_s: float
    calibration: Calibration

    @property
    def measured_s(self) -> float:
        """Seconds of the plan's step: of the slowest rank, the median of the repeats."""
        return _figure(self._step, "step_s")

    @property
    def _step(self) -> Mapping[str, object]:
        return cast("Mapping[str, object]", self.outcome["step"])

    def document(self) -> dict[str, object]:
        """Return the bench as JSON."""
        schedule = self.plan.pools[0].schedule
        return {
            "step_s": self.measured_s,
            "predicted_step_s": self.before_s,
            "refitted_step_s": self.after_s,
            "refitted_error": self.after_s / self.measured_s - 1,
            "tokens_per_step": schedule.tokens_per_step,
            "allocations_per_step": self.outcome["allocations_per_step"],
            "overlap_fraction": self._step["overlap_fraction"],
            "exposed_communication_fraction": self._step["exposed_communication_fraction"],
            "communication_s": self._step["communication_s"],
            "step_not_overlapped_s": cast("Mapping[str, object]", self.outcome["step_not_overlapped"])["step_s"],
            "observed": [
                {"schedule": each["schedule"], "step_s": each["step_s"]}
                for each in cast("list[Mapping[str, object]]", self.outcome["observed"])
            ],
            "busy_s": self._step["busy_s"],
            "wait_s": self._step["wait_s"],
            "calibration": self.calibration.name,
        }

    def sections(self) -> Iterator[RenderableType]:
        """Yield the table of the bench."""
        plan = self.plan
        pool = plan.pools[0]
        projection = pool.projection
        groups = pool.strategy.attn_dp * pool.strategy.instances
        tokens = pool.schedule.tokens_per_step * groups

        def row(name: str, seconds: float) -> tuple[str, str, str, str]:
            error = f"{seconds / self.measured_s - 1:+.0%}" if name != "measured" else ""
            return (name, format_duration(seconds), format_si(tokens / seconds, "tokens/s"), error)

        rows = [
            row("measured", self.measured_s),
            row("predicted by the plan", self.before_s),
            row("predicted by the refitted constants", self.after_s),
        ]
        hidden = _figure(self._step, "overlap_fraction")
        notes = [f"communication hidden: {hidden:.0%} measured"]
        if projection is not None:
            notes[0] += f", {projection.overlap_fraction:.0%} predicted by the plan"
        notes.append(f"a step is {pool.schedule.num_microbatches} micro-batches of each of {groups} attention groups")
        yield table(
            f"The plan's step: {tokens:,} tokens", ("step", ">takes", ">tokens/s", ">off by"), rows, notes=notes
        )


def bench_result(plan: Plan, calibration: Calibration, outcome: Mapping[str, object]) -> BenchResult:
    """Return the bench of a plan that was made with `calibration`, from what its ranks report."""
    fitted = _refitted(plan, calibration, outcome)
    return BenchResult(plan, outcome, _step_s(plan, calibration), _step_s(plan, fitted), fitted)


def _step_s(plan: Plan, calibration: Calibration) -> float:
    """Return the seconds that a step of the plan's first pool takes by some constants, all micro-batches together."""
    outcome, schedule = evaluate(plan, calibration).phases[0].outcome, plan.pools[0].schedule
    sequences = schedule.decode_sequences * schedule.num_microbatches
    return engine_step_s(calibration.engines[plan.engine], outcome.graph, outcome.step_s, sequences)


def _refitted(plan: Plan, calibration: Calibration, outcome: Mapping[str, object]) -> Calibration:
    pool = plan.pools[0]
    observed = cast("list[Mapping[str, object]]", outcome["observed"])
    found: list[Observation] = []
    overheads: list[float] = []
    for each in observed:
        schedule = Schedule.model_validate(each["schedule"])
        options = plan.options.model_copy(update={"two_batch_overlap": False})
        graph = build_step_graph(plan.model, pool.strategy, schedule, options, training=False)
        times = OpTimes(cast("Mapping[str, float]", each["busy_s"]), cast("Mapping[str, float]", each["wait_s"]))
        found += _observations(graph, times)
        overheads.append(max(_figure(each, "step_s") - times.total_s, 0.0))
    return refitted(
        calibration,
        found,
        Bench(plan.model.moe, pool.strategy, plan.cluster, pool.first_rank, _slowdown(outcome)),
        name=f"{plan.name}-bench",
        source=f"moiety run --bench of {plan.name}: {plan.model.name} on {plan.cluster.name}, {pool.strategy.name}",
        engine=plan.engine,
        step_overhead_s=mean(overheads),
        reserve_bytes=int(_figure(outcome, "resident_bytes")),
    )


def _slowdown(outcome: Mapping[str, object]) -> float:
    """Return how much longer computation takes beside the other micro-batch's transfers than without them."""
    both = cast("Mapping[str, Mapping[str, float]]", outcome["step"])
    alone = cast("Mapping[str, Mapping[str, float]]", outcome["step_not_overlapped"])
    return max(sum(both["busy_s"].values()) / sum(alone["busy_s"].values()), 1.0)


def _observations(graph: Graph, times: OpTimes) -> list[Observation]:
    """Return what the ops of a step took, those of one kind of layer as their mean."""
    decode = graph.layout.schedule.prefill_tokens == 0
    found = [Observation(op, times.of(op, -1), decode) for op in (*graph.embedding, *graph.head)]
    for block, ops in enumerate(graph.layers):
        layers = [index for index in range(graph.model.num_layers) if graph.block_of(index) == block]
        names = {op.name for op in ops}
        for op in ops:
            seconds = mean(times.of(op, layer) + times.added(op, layer, names) for layer in layers)
            found.append(Observation(op, seconds, decode))
    return [each for each in found if each.seconds > 0]


@dataclass(frozen=True, slots=True)
class OpTimes:
    """Seconds of a step's ops, as `op@layer`: in which a rank was busy, and in which it waited for transfers."""

    busy_s: Mapping[str, float]
    wait_s: Mapping[str, float]

    @property
    def total_s(self) -> float:
        """Return all of them together."""
        return sum(self.busy_s.values()) + sum(self.wait_s.values())

    def of(self, op: Op, layer: int) -> float:
        """Return what an op took: a transfer the wait for it, any other what the rank was busy."""
        times = self.wait_s if op.is_communication else self.busy_s
        return times.get(f"{op.name}@{layer}", 0.0)

    def added(self, op: Op, layer: int, names: set[str]) -> float:
        """Return what counts towards an op beside itself.

        Rows are packed and sorted by the rank: work of the products that they are packed for. And what
        marks of latent attention the graph has no op for, such as the one token that is expanded while decoding.
        """
        names_added = {"expert_gate_up": ("dispatch",), "expert_down": ("combine",)}.get(op.name, ())
        if op.name == "attention":
            names_added = tuple(name for name in _LATENT if name not in names)
        return sum(self.busy_s.get(f"{name}@{layer}", 0.0) for name in names_added)


def _figure(document: Mapping[str, object], key: str) -> float:
    value = document[key]
    assert isinstance(value, (int, float)), f"{key} is a number"
    return float(value)
