"""One phase of a deployment with wide expert parallelism, measured by itself: prompt or output tokens a second."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moiety.calibration.catalog import calibration_for
from moiety.calibration.engines import engine_calibration
from moiety.plan import DtypePolicy, Options, Schedule
from moiety.projection.admission import CHUNK_TOKENS
from moiety.projection.engine_step import engine_step_s
from moiety.projection.load import LoadClass
from moiety.projection.scenario import Scenario
from moiety.projection.step import time_step
from moiety.strategy.strategy import Strategy
from moiety.validation.serving_case import row_cluster, row_model
from moiety.validation.skipped import SkippedRow
from moiety.validation.transfer_case import row_device
from moiety.workload.workload import Workload

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration, Engine
    from moiety.cluster.cluster import Cluster
    from moiety.dtypes import Dtype
    from moiety.model.model import Model
    from moiety.validation.system_row import SystemRow

PHASES = ("prefill", "decode")
_ENGINES: dict[str, Engine] = {"profile-data": "moiety", "vllm-project": "vllm", "lm-sys": "sglang"}
"""Engines by what names them in a row's source; of DeepSeek's own only the kernels are known."""
_PER_GPU = re.compile(r"(\d+) (tok|req)/GPU")


def predict_phase(row: SystemRow) -> dict[str, float]:
    """Return tokens a second of a phase; raise SkippedRow with the reason where they cannot be told.

    Every rank has as many expert slots, the last of them second copies where the experts do not divide, and as much
    work: how uneven real prompts leave it after balancing (EPLB) is not stated.

    Micro-batches that overlap are not timed as such: what they hide was measured to be about what the kernels lose that
    run beside transfers, so that a step takes what its parts take one after the other.
    """
    if "average" in row.notes:
        raise SkippedRow("an average over a day of production, of which the load is not stated")
    model, cluster = _model(row), row_cluster(row_device(row).name, row.n_gpus or 1)
    ranks = row.degree("ep") or 0
    if ranks < 2 or ranks != row.n_gpus or model.moe is None:  # noqa: PLR2004 - one rank divides nothing
        raise SkippedRow("the ranks of a phase are not stated as expert ranks with data-parallel attention")
    strategy = Strategy(attn_dp=ranks, ep=ranks)
    schedule, engine = _schedule(row), _engine(row)
    scenario = Scenario(model, cluster, _workload(row), engine, _calibration(engine, cluster))
    classes = [LoadClass("all", ranks, (1.0,) * len(model.layers))]
    options = Options(
        two_batch_overlap=False,
        fused_kernels=False,
        redundant_experts=-model.moe.num_experts % ranks,
        dtypes=_formats(row),
    )
    outcome = time_step(scenario, strategy, schedule, options, None, timing="folded", classes=classes)
    step_s = engine_step_s(scenario.overheads, outcome.graph, outcome.step_s, schedule.decode_sequences)
    each = schedule.tokens_per_step / step_s
    side = "input" if row.phase == "prefill" else "output"
    node = min(cluster.gpus_per_node, ranks)
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


def _workload(row: SystemRow) -> Workload:
    return Workload(
        name="measured",
        kind="mixed",
        input_tokens=round(row.isl or 1),
        output_tokens=max(round(row.osl or 1), 1),
        concurrency=1,
    )


def _engine(row: SystemRow) -> Engine:
    for name, engine in _ENGINES.items():
        if name in row.source:
            return engine
    raise SkippedRow("the engine is not stated")


def _calibration(engine: Engine, cluster: Cluster) -> Calibration:
    device = cluster.device
    if engine == "moiety":
        return calibration_for(device.architecture)
    return engine_calibration(engine, device.architecture, device.memory_bytes)


def _formats(row: SystemRow) -> DtypePolicy:
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
    return DtypePolicy(weights=dense, experts=experts, dispatch=sent, kv_cache=cache)
