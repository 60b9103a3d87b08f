"""Predictions for serving rows: their nouns into pools of workers, and those through the planner's laws."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moiety.calibration.engine_memory import engine_memory
from moiety.calibration.engines import family_calibration
from moiety.calibration.expert_kernels import has_contiguous_experts, with_contiguous_experts
from moiety.calibration.scheduling import scheduling
from moiety.calibration.serving_catalog import load_serving
from moiety.projection.admission import CHUNK_TOKENS, PROMPT_TOKENS
from moiety.projection.scenario import Scenario
from moiety.projection.serving import aggregated_latency
from moiety.projection.serving_apart import apart_parts, disaggregated_latency
from moiety.projection.serving_pool import ServingPool

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.calibration.serving import ServingConstants
    from moiety.projection.serving import ServingLatency
    from moiety.projection.serving_apart import ApartParts
    from moiety.validation.serving_case import ServingCase, WorkerCase


class ServingPredictor:
    """Predicts serving cases under one set of constants; None: those of the catalogue."""

    def __init__(self, constants: ServingConstants | None = None) -> None:
        self._constants = constants or load_serving()
        self._calibrations: dict[str, Calibration] = {}

    def predict(self, case: ServingCase) -> ServingLatency:
        """Return the latencies of a case, in closed form."""
        decode = self.pool(case, case.decode)
        if not case.disaggregated:
            return aggregated_latency(decode, case.concurrency)
        return disaggregated_latency(self.pool(case, case.prefill), decode, case.concurrency, self._constants.apart)

    def apart_parts(self, case: ServingCase) -> ApartParts:
        """Return what the latencies of a case with prefill apart are made of."""
        return apart_parts(self.pool(case, case.prefill), self.pool(case, case.decode), case.concurrency)

    def pool(self, case: ServingCase, worker: WorkerCase) -> ServingPool:
        """Return some workers of a case with the constants of its devices and its engine's version."""
        architecture = case.cluster.device.architecture
        family = self._constants.family(architecture)
        if architecture not in self._calibrations:
            self._calibrations[architecture] = family_calibration(family)
        calibration, experts = self._calibrations[architecture], case.options.dtypes.experts
        if has_contiguous_experts(case.engine, case.version, architecture, experts, worker.strategy.etp):
            calibration = with_contiguous_experts(calibration)
        schedules = scheduling(case.engine)
        return ServingPool(
            scenario=Scenario(case.model, case.cluster, case.workload, case.engine, calibration),
            strategy=worker.strategy.model_copy(update={"instances": worker.num_workers}),
            options=case.options,
            overheads=family.release(case.engine, case.version),
            scheduling=replace(schedules, mixes_prefill=True) if case.mixes_prefill else schedules,
            max_sequences=worker.max_sequences,
            draft_tokens=case.draft_tokens,
            admission=case.admission,
            captured_prompts=case.captured_prompts,
            step_tokens=_step_tokens(case, worker),
            waves=case.waves,
            frontends=case.frontends,
            cold_tokens=case.cold_tokens,
            acceptance=self._constants.draft_acceptance,
            memory=engine_memory(
                case.engine,
                case.version,
                case.cluster.device.memory_bytes,
                worker.strategy.num_gpus,
                case.memory_share,
            ),
        )


def _step_tokens(case: ServingCase, worker: WorkerCase) -> int:
    """Return the prompt tokens that a step of some workers takes at the most."""
    if case.disaggregated and worker is case.prefill:
        return PROMPT_TOKENS
    return case.input_tokens if case.one_prompt_a_step else CHUNK_TOKENS
