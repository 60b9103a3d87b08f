"""Serving rows as `moiety plan` would time their deployments, by what a plan knows of an engine.

That is the constants of its newest releases and its defaults: neither the run's release nor what its operator set
besides. The deployment is the row's own: model, devices, strategy, formats, lengths, requests in flight. A plan's code
times it; nothing of the law stands here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moiety.calibration.engines import engine_calibration
from moiety.plan import Pool
from moiety.projection.place import place
from moiety.projection.project import evaluate_pools
from moiety.projection.scenario import Scenario
from moiety.projection.schedule import schedules
from moiety.projection.serving import ServingLatency
from moiety.strategy.legality import broken_rules
from moiety.validation.skipped import SkippedRow

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration, Engine
    from moiety.plan import Phase
    from moiety.validation.serving_case import ServingCase, WorkerCase


class PlanPredictor:
    """Predicts serving cases as plans of them are timed."""

    def __init__(self) -> None:
        self._calibrations: dict[tuple[Engine, str, float], Calibration] = {}

    def predict(self, case: ServingCase) -> ServingLatency:
        """Return the latencies of a case's plan; raise SkippedRow with the reason where there could be none.

        In closed form, which is the time that a simulation of every layer comes to where no two micro-batches overlap.
        """
        scenario, pools = self.planned(case)
        found = evaluate_pools(scenario, pools, case.options, timing="estimated")
        if not all(phase.memory.fits for phase in found.phases):
            raise _refused("fits-the-memory")
        assert found.whole.ttft_s is not None, "serving has a time to first token"
        # of one output token there is no time per output token, in plans as in what was measured
        return ServingLatency(found.whole.ttft_s, math.nan if found.whole.tpot_s is None else found.whole.tpot_s)

    def planned(self, case: ServingCase) -> tuple[Scenario, tuple[Pool, ...]]:
        """Return what a case's plan decides, to be evaluated; raise SkippedRow where there could be none.

        Pools begin in domains of links of their own. Plans of several nodes lay them on whole ones, and how operators
        lay out pools that fill none is not stated.
        """
        if case.draft_tokens:
            raise SkippedRow("it guessed tokens (speculative decoding), which no plan does")
        device = case.cluster.device
        key = case.engine, device.architecture, device.memory_bytes
        if key not in self._calibrations:
            self._calibrations[key] = engine_calibration(*key)
        scenario = Scenario(case.model, case.cluster, case.workload, case.engine, self._calibrations[key])
        if not case.disaggregated:
            return scenario, (_pool(scenario, case, "mixed", case.decode),)
        return scenario, (_pool(scenario, case, "prefill", case.prefill), _pool(scenario, case, "decode", case.decode))


def _pool(scenario: Scenario, case: ServingCase, role: Phase, worker: WorkerCase) -> Pool:
    """Return some workers of a case as a pool of its plan."""
    strategy = worker.strategy.model_copy(update={"instances": worker.num_workers})
    broken = broken_rules(case.model, strategy, case.options.redundant_experts)
    if broken:
        raise _refused(broken[0].rule)
    cut = schedules(scenario.workload, role, strategy, case.options)
    if not cut:
        raise _refused("every-group-has-work")
    return Pool(
        role=role,
        first_rank=0,
        strategy=strategy,
        schedule=cut[0],
        placement=place(scenario, strategy, case.options),
    )


def _refused(rule: str) -> SkippedRow:
    return SkippedRow(f"`moiety plan` refuses such a deployment: {rule}")
