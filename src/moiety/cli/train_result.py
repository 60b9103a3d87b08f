"""What a training came to: its losses, and what was measured of memory beside what the plan says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, cast

from moiety.cli.table import table
from moiety.cost.training_peak import fullest_peaks, step_peaks
from moiety.graph.graph import build_graph
from moiety.placement.load import loads_of_counts
from moiety.units import format_duration, format_si

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import RenderableType

    from moiety.cli.run_plan import Folding
    from moiety.cli.train_plan import PlannedSharding
    from moiety.plan import MemoryPlan
    from moiety.runtime.job import Job, Training
    from moiety.runtime.post import Report

_SHARDING_ROWS = (
    ("gathered_bytes", "gathered"),
    ("scattered_bytes", "gradients scattered"),
    ("transfer_s", "under way"),
    ("exposed_s", "exposed"),
    ("step_s", "step"),
)
_MOST_SHOWN = 20
"""Steps that a table shows; `--json` has all."""
_KINDS = ("dense_weights", "expert_weights", "embedding_and_head", "gradients", "optimizer_state")
"""Kinds of the memory plan that a rank holds from step to step."""
_SAVED = "stored_activations"
_OF_ALL = frozenset({"losses", "rank", "first_step", "load_imbalance", "sharding"})
"""Parts of a rank's report that are told of all ranks together, or by themselves."""
_FIRST_QUIET = 2
"""The first step without anything that is measured or made once, counted from 0."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished training."""

    job: Job
    reports: tuple[Report, ...]
    folding: Folding | None
    planned_peaks: dict[str, int]
    """The bytes that the plan has at the moments of a step that can be its peak, on the rank that takes most."""
    planned_sharding: PlannedSharding | None = None
    """What a step sends for sharded parameters by the plan; None where it shards none."""

    @property
    def training(self) -> Training:
        """What the ranks were asked for."""
        assert self.job.training is not None, "the job is one of training"
        return self.job.training

    @property
    def memory(self) -> MemoryPlan:
        """The plan's memory of a step like those that were taken."""
        memory = self.job.plan.pools[0].memory
        assert memory is not None, "a plan of training is evaluated before it is run"
        return memory

    @property
    def losses(self) -> list[float]:
        """The mean loss of each step's rows, before the step."""
        return cast("list[float]", self.reports[0]["losses"])

    @property
    def saved(self) -> dict[str, int]:
        """What a forward pass keeps for the backward pass, on the rank that keeps most."""
        each = [cast("dict[str, int]", report["saved_tensor_bytes"]) for report in self.reports]
        return {key: max(saved[key] for saved in each) for key in each[0]}

    @property
    def peaks_at_loads(self) -> dict[str, int]:
        """The same for the rows that the routers gave each rank's experts in the step whose peak was measured."""
        plan = self.job.plan
        pool = plan.pools[0]
        graph = build_graph(plan.model, pool, plan.options)
        if pool.placement is None:
            return step_peaks(graph, self.memory)
        of_ranks = [cast("Mapping[str, list[int]]", report["expert_counts"]) for report in self.reports]
        counts = {
            layer: [sum(chosen) for chosen in zip(*(each[str(layer)] for each in of_ranks), strict=True)]
            for layer in pool.placement.layers
        }
        loads = loads_of_counts(pool.placement, counts, plan.model.num_layers)
        return fullest_peaks(graph, self.memory, loads)

    @property
    def measured_sharding(self) -> dict[str, float | None]:
        """What a step sent for sharded parameters, mean of the ranks; times are None where they are not measured.

        Of the steps that nothing was counted in but this, the median; of the last, where there are none.
        """
        steps = [cast("list[dict[str, float | None]]", report["sharding"]) for report in self.reports]
        counted = [each[_FIRST_QUIET:] or each[-1:] for each in steps]
        found: dict[str, float | None] = {}
        for key in counted[0][0]:
            values = [[step[key] for step in each] for each in counted]
            known = [[value for value in each if value is not None] for each in values]
            found[key] = fmean(median(each) for each in known) if all(known) else None
        return found

    def document(self) -> dict[str, object]:
        """Return the training as one JSON document; figures of memory are the largest of all ranks."""
        plan = self.job.plan
        saved = self.saved
        in_steps = saved.pop("as_planned")
        return {
            "plan": plan.name,
            "num_ranks": self.job.num_ranks,
            "batch_size": self.training.batch_size,
            "first_step": self.reports[0]["first_step"],
            "losses": self.losses,
            "saved_tensor_bytes": saved,
            "saved_tensor_bytes_in_steps": in_steps,
            "checkpointed_layers": list(self.memory.checkpointed_layers),
            "peak_bytes": self._largest("peak_bytes"),
            "planned_peak_bytes": self.planned_peaks,
            "planned_peak_bytes_at_loads": self.peaks_at_loads,
            "allocations_per_step": self._largest("allocations_per_step"),
            "measured": {"ranks": [self._rank(rank, report) for rank, report in enumerate(self.reports)]},
            "sharding": None
            if self.planned_sharding is None
            else {"measured": self.measured_sharding, "planned": asdict(self.planned_sharding)},
            "planned": self.memory.model_dump(mode="json", exclude={"arena"}),
            "load_imbalance": self.reports[0]["load_imbalance"],
            "saved": self.training.save,
            "folded": None if self.folding is None else self.folding.document(),
        }

    def held(self, kind: str) -> int:
        """Return the bytes of a kind of the memory plan, on the rank that holds most of it."""
        return max(cast("Mapping[str, int]", _of_rank(report)["held_bytes"])[kind] for report in self.reports)

    def _largest(self, key: str) -> int:
        return max(cast("int", report[key]) for report in self.reports)

    @staticmethod
    def _rank(rank: int, report: Report) -> dict[str, object]:
        whole = {key: value for key, value in report.items() if key not in _OF_ALL}
        return {"rank": rank, **whole, **_of_rank(report)}


def train_sections(result: TrainResult) -> Iterator[RenderableType]:
    """Yield everything that `moiety train` shows, in order."""
    plan, training = result.job.plan, result.training
    losses = list(enumerate(result.losses, 1))
    shown = losses if len(losses) <= _MOST_SHOWN else losses[: _MOST_SHOWN // 2] + losses[-_MOST_SHOWN // 2 :]
    notes = [f"{len(losses)} steps, of which the first and last are shown; --json has all"] if shown != losses else []
    title = f"{plan.model.name} on {plan.num_gpus} ranks ({plan.pools[0].strategy.name}): "
    title += f"{training.batch_size} rows a step"
    yield table(title, (">step", ">loss"), [(str(step), f"{loss:.6f}") for step, loss in shown], notes=notes)
    imbalances = cast("list[float]", result.reports[0]["load_imbalance"])
    if imbalances:
        first, last = imbalances[0], imbalances[-1]
        yield f"The most chosen expert had {first:.2f} times the mean load at first, {last:.2f} at last."
    yield memory_section(result)
    if result.planned_sharding is not None:
        yield sharding_section(result.planned_sharding, result.measured_sharding)


def memory_section(result: TrainResult) -> RenderableType:
    """Return the bytes of the rank that holds most, beside the memory plan's."""
    planned, saved, whole = result.memory.bytes_by_kind, result.saved, result.document()
    rows = [(kind.replace("_", " "), _bytes(result.held(kind)), _bytes(planned.get(kind, 0))) for kind in _KINDS]
    rows.append(("kept for the backward pass", _bytes(saved["as_planned"]), _bytes(planned.get(_SAVED, 0))))
    kept = f"kept without checkpointing {_bytes(saved['without_checkpointing'])}, with all layers checkpointed "
    kept += (
        f"{_bytes(saved['with_checkpointing'])}; the plan checkpoints {len(result.memory.checkpointed_layers)} layers"
    )
    peak = f"peak of a step {_bytes(cast('int', whole['peak_bytes']))} in {whole['allocations_per_step']} allocations, "
    peak += f"planned {_bytes(max(result.planned_peaks.values()))}, at the loads that the routers gave "
    peak += _bytes(max(result.peaks_at_loads.values()))
    notes = [kept, peak]
    return table("Memory of the fullest rank", ("kind", ">measured", ">planned"), rows, notes=notes)


def sharding_section(planned: PlannedSharding, measured: Mapping[str, float | None]) -> RenderableType:
    """Return what a step sends for sharded parameters, and what of it nothing hides, beside the plan's."""
    expected = asdict(planned)
    rows = [(words, *(_amount(key, each[key]) for each in (measured, expected))) for key, words in _SHARDING_ROWS]
    notes = ["exposed: a rank waits for a gather or a scatter and does nothing else; means of the ranks"]
    return table("Sharded parameters in a step", ("", ">measured", ">planned"), rows, notes=notes)


def _amount(key: str, value: float | None) -> str:
    if value is None:
        return "not measured"
    return format_duration(value) if key.endswith("_s") else _bytes(value)


def _of_rank(report: Report) -> dict[str, object]:
    return cast("dict[str, object]", report["rank"])


def _bytes(value: float) -> str:
    return format_si(value, "B")
