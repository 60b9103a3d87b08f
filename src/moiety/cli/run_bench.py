"""`moiety run --bench`: the plan's own step measured beside its prediction, and the constants refitted to its ops."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, cast

from moiety.cli.table import table
from moiety.cost.refit import Bench, Observation, refitted
from moiety.graph.graph import build_step_graph
from moiety.plan import Schedule
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
            "overlap_fraction": self._step["overlap_fraction"],
            "exposed_communication_fraction": self._step["exposed_communication_fraction"],
            "communication_s": self._step["communication_s"],
            "step_not_overlapped_s": cast("Mapping[str, object]", self.outcome["step_not_overlapped"])["step_s"],
            "op_s": self._step["op_s"],
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
    phase = evaluate(plan, calibration).phases[0]
    return phase.outcome.step_s + calibration.engines[plan.engine].step_overhead_s


def _refitted(plan: Plan, calibration: Calibration, outcome: Mapping[str, object]) -> Calibration:
    pool = plan.pools[0]
    observed = cast("list[Mapping[str, object]]", outcome["observed"])
    found: list[Observation] = []
    overheads: list[float] = []
    for each in observed:
        schedule = Schedule.model_validate(each["schedule"])
        options = plan.options.model_copy(update={"two_batch_overlap": False})
        graph = build_step_graph(plan.model, pool.strategy, schedule, options, training=False)
        seconds = cast("Mapping[str, float]", each["op_s"])
        found += _observations(graph, seconds)
        overheads.append(max(_figure(each, "step_s") - sum(seconds.values()), 0.0))
    return refitted(
        calibration,
        found,
        Bench(plan.model.moe, pool.strategy, plan.cluster, pool.first_rank),
        name=f"{plan.name}-bench",
        source=f"moiety run --bench of {plan.name}: {plan.model.name} on {plan.cluster.name}, {pool.strategy.name}",
        engine=plan.engine,
        step_overhead_s=mean(overheads),
        reserve_bytes=int(_figure(outcome, "resident_bytes")),
    )


def _observations(graph: Graph, seconds: Mapping[str, float]) -> list[Observation]:
    """Return what the ops of a step took, those of one kind of layer as their mean."""
    decode = graph.layout.schedule.prefill_tokens == 0
    found: list[Observation] = []
    for op in (*graph.embedding, *graph.head):
        took = seconds.get(f"{op.name}@-1", 0.0)
        if took > 0:
            found.append(Observation(op, took, decode))
    for block, ops in enumerate(graph.layers):
        layers = [index for index in range(graph.model.num_layers) if graph.block_of(index) == block]
        found += _of_layers(ops, layers, seconds, decode=decode)
    return found


def _of_layers(
    ops: tuple[Op, ...], layers: list[int], seconds: Mapping[str, float], *, decode: bool
) -> list[Observation]:
    names = {op.name for op in ops}
    extra = mean(sum(seconds.get(f"{name}@{layer}", 0.0) for name in _LATENT if name not in names) for layer in layers)
    found: list[Observation] = []
    for op in ops:
        took = mean(seconds.get(f"{op.name}@{layer}", 0.0) for layer in layers)
        took += extra if op.name == "attention" else 0.0
        if took > 0:
            found.append(Observation(op, took, decode))
    return found


def _figure(document: Mapping[str, object], key: str) -> float:
    value = document[key]
    assert isinstance(value, (int, float)), f"{key} is a number"
    return float(value)
