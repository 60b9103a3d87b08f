"""One phase of a deployment with wide expert parallelism, measured by itself: prompt or output tokens a second."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moiety.calibration.catalog import calibration_for
from moiety.calibration.engines import engine_calibration
from moiety.plan import DtypePolicy, Options, Schedule
from moiety.projection.admission import CHUNK_TOKENS
from moiety.projection.engine_step import engine_step_s
from moiety.projection.scenario import Scenario
from moiety.projection.step import time_step
from moiety.strategy.strategy import Strategy
from moiety.validation.serving_case import ServingCase, WorkerCase, row_cluster, row_model
from moiety.validation.skipped import SkippedRow
from moiety.validation.stated import deployment, timed
from moiety.validation.transfer_case import row_device

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration, Engine
    from moiety.calibration.serving import ServingConstants
    from moiety.cluster.cluster import Cluster
    from moiety.dtypes import Dtype
    from moiety.model.model import Model
    from moiety.validation.serving_row import ServingRow
    from moiety.validation.system_row import SystemRow

PHASES = ("prefill", "decode")
_ENGINES: dict[str, Engine] = {"profile-data": "moiety", "vllm-project": "vllm", "lm-sys": "sglang"}
"""Engines by what names them in a row's source; of DeepSeek's own only the kernels are known."""
_PER_GPU = re.compile(r"(\d+) (tok|req)/GPU")


def predict_phase(row: SystemRow, serving: ServingConstants | None = None) -> dict[str, float]:
    """Return tokens a second of a phase; raise SkippedRow with the reason where they cannot be told.

    Engines have the constants of their newest releases in `serving`; None: the catalogue's. Every rank has as many
    expert slots, the last of them second copies where the experts do not divide, and as much work: how uneven real
    prompts leave it after balancing (EPLB) is not stated.

    Micro-batches that overlap are not timed as such: what they hide was measured to be about what the kernels lose that
    run beside transfers, so that a step takes what its parts take one after the other.
    """
    case, schedule = phase_case(row)
    strategy, cluster = case.decode.strategy, case.cluster
    scenario = Scenario(case.model, cluster, case.workload, case.engine, _calibration(case.engine, cluster, serving))
    outcome = time_step(scenario, strategy, schedule, case.options, None, timing="folded")
    step_s = engine_step_s(scenario.overheads, outcome.graph, outcome.step_s, schedule.decode_sequences)
    return _rates(case, schedule, step_s)


def as_steps(row: SystemRow, case: ServingCase, schedule: Schedule) -> ServingRow:
    """Return a phase (`phase_case`) as a serving row whose time per output token is that of one of its steps."""
    rates = _rates(case, schedule, 1.0)
    found = [rate / measured for name, rate in rates.items() if (measured := row.metric(name))]
    if row.kind != "e2e" or row.tier != "A" or not found:
        raise SkippedRow("it is no phase that was measured")
    lengths, named = (case.input_tokens, case.output_tokens), row.model_copy(update={"model": case.model.name})
    return timed(deployment(named, case.engine, case.concurrency, *lengths), 1e3 * found[0])


def phase_case(row: SystemRow) -> tuple[ServingCase, Schedule]:
    """Return the deployment of a phase, whose other one runs elsewhere, and what each GPU computes in a step."""
    if "average" in row.notes:
        raise SkippedRow("an average over a day of production, of which the load is not stated")
    model, cluster = _model(row), row_cluster(row_device(row).name, row.n_gpus or 1)
    ranks = row.degree("ep") or 0
    if ranks < 2 or ranks != row.n_gpus or model.moe is None:  # noqa: PLR2004 - one rank divides nothing
        raise SkippedRow("the ranks of a phase are not stated as expert ranks with data-parallel attention")
    schedule, workers = _schedule(row), WorkerCase(Strategy(attn_dp=ranks, ep=ranks), 1)
    options = Options(
        two_batch_overlap=False,
        fused_kernels=False,
        redundant_experts=-model.moe.num_experts % ranks,
        dtypes=_formats(row, model),
    )
    case = ServingCase(
        model=model,
        cluster=cluster,
        engine=_engine(row),
        version="",
        options=options,
        input_tokens=round(row.isl or 1),
        output_tokens=max(round(row.osl or 1), 1),
        concurrency=ranks * max(schedule.decode_sequences, 1),
        prefill=workers,
        decode=workers,
        disaggregated=True,
    )
    return case, schedule


def _rates(case: ServingCase, schedule: Schedule, step_s: float) -> dict[str, float]:
    """Return tokens a second of steps that take so long, by what they are counted for."""
    each, ranks = schedule.tokens_per_step / step_s, case.decode.strategy.attn_dp
    side = "input" if schedule.prefill_tokens else "output"
    node = min(case.cluster.gpus_per_node, ranks)
    return {
        f"{side}_tok_s_per_gpu": each,
        f"{side}_tok_s_per_node": each * node,
        f"{side}_tok_s_per_instance": each * ranks,
    }


def _model(row: SystemRow) -> Model:
    return row_model(row.model.partition("/")[0] if row.model.count("/") == 1 else row.model)


def _schedule(row: SystemRow) -> Schedule:
    """Return what each GPU computes in a step; prompts of an unstated batch come in the usual chunks."""
    stated = _PER_GPU.match(row.batch or "")
    if not row.isl:
        raise SkippedRow("the length of the prompts is not stated")
    if row.phase == "prefill":
        tokens = int(stated[1]) if stated and stated[2] == "tok" else CHUNK_TOKENS
        counts = {"prefill_tokens": tokens, "prompt_tokens": round(row.isl), "decode_sequences": 0, "context_tokens": 0}
        return Schedule(num_microbatches=1, **counts)
    if stated is None or stated[2] != "req":
        raise SkippedRow("the requests in flight are not stated")
    context = round(row.isl + (row.osl or 0) / 2)
    counts = {"prefill_tokens": 0, "prompt_tokens": 0, "decode_sequences": int(stated[1]), "context_tokens": context}
    return Schedule(num_microbatches=1, **counts)


def _engine(row: SystemRow) -> Engine:
    for name, engine in _ENGINES.items():
        if name in row.source:
            return engine
    raise SkippedRow("the engine is not stated")


def _calibration(engine: Engine, cluster: Cluster, serving: ServingConstants | None) -> Calibration:
    device = cluster.device
    if engine == "moiety":
        return calibration_for(device.architecture)
    return engine_calibration(engine, device.architecture, device.memory_bytes, serving=serving)


def _formats(row: SystemRow, model: Model) -> DtypePolicy:
    """Return the formats of weights, rows and cache.

    What is stated of attention is the format of its core and of the cache that it reads, not of its projections
    (lm-sys, 2025-09-25, GB200 part II: "FP8 precision for KV cache in attention", "BF16 for attention and FP8 for
    GEMM").
    """
    stated = (row.precision or "").lower()
    experts: Dtype = "fp4" if "fp4" in stated else "fp8" if "fp8" in stated else "bf16"
    dense: Dtype = "fp8" if "fp8" in stated else "bf16"
    sent: Dtype = "bf16" if experts == "bf16" else "fp8"
    cache: Dtype = "fp8" if "fp8 attn" in stated else "bf16"
    in_blocks = dense == "fp8" and model.block_scales
    return DtypePolicy(weights=dense, block_scales=in_blocks, experts=experts, dispatch=sent, kv_cache=cache)
