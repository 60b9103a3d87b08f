"""What a serving row describes, in Moiety's own nouns; or the reason why that cannot be told."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from moiety.calibration.scheduling import quantizes_cache
from moiety.cluster.catalog import ALIASES, catalog_clusters, load_cluster
from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.errors import InputError
from moiety.model.catalog import load_catalog_model
from moiety.plan import DtypePolicy, Options
from moiety.projection.admission import AT_EVERY_STEP, Admission
from moiety.strategy.legality import SCALE_BLOCKS, broken_rules
from moiety.strategy.strategy import Strategy
from moiety.validation.deployments import TWINS, completed
from moiety.validation.published_names import device_name, engine_name, model_name, weight_format
from moiety.validation.published_settings import (
    NOT_PUBLISHED,
    has_published_lengths,
    mean_tokens,
    published_settings,
    published_waves,
    shortest_share,
)
from moiety.validation.skipped import SkippedRow
from moiety.workload.workload import Workload

if TYPE_CHECKING:
    from moiety.calibration.calibration import Engine
    from moiety.cluster.cluster import Cluster
    from moiety.dtypes import Dtype
    from moiety.model.model import Model
    from moiety.validation.serving_row import Degrees, ServingRow, Workers

_DYNAMO = {"0.5": "1.1.0", "0.6": "1.1.0", "0.7": "1.2.0", "0.8": "1.2.0", "0.9": "1.3.0", "1": "1.3.0"}
"""Releases of TensorRT-LLM in Dynamo's containers (its support matrix, docs.nvidia.com/dynamo): 0.6 holds 1.1.0rc5, 0.7
1.2.0rc2 and rc3, 0.8 1.2.0rc6, 0.9 1.3.0rc1; 0.5.1 came before 0.6."""
_OWN_CANDIDATE = re.compile(r"[0-9.]+rc[0-9]")
"""A release candidate as TensorRT-LLM writes it (1.3.0rc5); Dynamo puts a dash before (0.5.1-rc0)."""
_DENSE_OF_FP4: dict[str, Dtype] = {"deepseek-r1": "fp8", "deepseek-v3": "fp8"}
"""Dense weights of FP4 checkpoints of mixtures; of others BF16.

The published runs of DeepSeek had nvidia/DeepSeek-R1-0528-FP4-v2, whose model card says that the output projections of
attention are FP4 beside dense layers and shared experts; with the rest in BF16 that is 1.0 bytes a weight, as in FP8.
They reach what the FP8 of the same models does, with a scale a block.
"""


_FP8_IN_BLOCKS = frozenset({"glm-5", "qwen3.5-397b-a17b"})
"""Models that ran in FP8 from a checkpoint with a scale a block, which is not the catalogue's: InferenceX names
Qwen/Qwen3.5-397B-A17B-FP8 and zai-org/GLM-5-FP8. What ModelOpt or an engine quantizes has one scale for all."""
_QWEN_FP8 = re.compile(r"Qwen/.*-FP8")
"""Checkpoints whose configs have a `weight_block_size` of 128 x 128."""


@dataclass(frozen=True, slots=True)
class WorkerCase:
    """One group of equal workers: how each divides the model, and how many there are."""

    strategy: Strategy
    num_workers: int
    max_sequences: int | None = None
    """Sequences that each attention group may run at a time."""


@dataclass(frozen=True, slots=True)
class ServingCase:
    """A serving row in Moiety's nouns. An aggregated one has the same workers in both phases."""

    model: Model
    cluster: Cluster
    engine: Engine
    version: str
    options: Options
    input_tokens: int
    output_tokens: int
    concurrency: int
    prefill: WorkerCase
    decode: WorkerCase
    disaggregated: bool
    draft_tokens: int = 0
    admission: Admission = AT_EVERY_STEP
    """When workers that decode take up the prompts that they compute."""
    captured_prompts: bool = False
    """Steps that hold prompts replay captured graphs."""
    one_prompt_a_step: bool = False
    """A step has room for the tokens of one prompt."""
    waves: int | None = None
    """Requests of the run, over those in flight."""
    mixes_prefill: bool = False
    """Steps that hold prompts decode too, whatever the engine does by itself."""
    shortest_share: float = 1.0
    """The shortest prompt's and answer's share of the longest."""
    frontends: int = 1
    """Routers, each of which sends its requests to one decoding worker after the other."""
    cold_tokens: int | None = None
    """Prompt tokens of a full step, where the run was not warmed up."""
    memory_share: float | None = None
    """Share of the memory that the engine was set to take; None: its default."""

    @property
    def workload(self) -> Workload:
        """The requests: of the mean lengths, so many in flight."""
        return Workload(
            name="measured",
            kind="mixed",
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            concurrency=self.concurrency,
            shortest_share=self.shortest_share,
        )


def serving_case(row: ServingRow) -> ServingCase:
    """Return what `row` describes; raise SkippedRow with the reason where something is missing or not known."""
    for name in ("isl", "osl", "concurrency"):
        if getattr(row, name) is None:
            raise SkippedRow(f"{name} is not stated")
    engine = engine_name(row.backend)
    model = row_model(row.model)
    labelled = row.gpus_apart
    row = completed(row.counted_once(), model.name)
    dtypes = row_dtypes(row, model)
    setting, memory_share = NOT_PUBLISHED, None
    if row.mode == "agg":
        strategy = _strategy(model, row)
        prefill = decode = WorkerCase(strategy, _num_workers(row, strategy))
        setting, memory_share = published_settings(row, _run_as(model), engine, decode.strategy)
        formats = {"kv_cache": setting.kv_cache or dtypes.kv_cache, "state": setting.state or dtypes.state}
        dtypes = dtypes.model_copy(update=formats)
    else:
        if row.prefill is None or row.decode is None:
            raise SkippedRow("prefill or decode workers are not stated")
        prefill, decode = _stated(model, row.prefill), _stated(model, row.decode)
    gpus = prefill.strategy.num_gpus * prefill.num_workers
    if row.mode == "disagg":
        gpus += decode.strategy.num_gpus * decode.num_workers
        if labelled is not None and row.num_gpus not in {None, labelled, gpus}:
            raise SkippedRow(f"num_gpus = {row.num_gpus}, and its workers have {gpus}")
    input_tokens, output_tokens = mean_tokens(row, _run_as(model))
    return ServingCase(
        model=model,
        cluster=row_cluster(row.system, max(gpus, row.num_gpus or 1)),
        engine=engine,
        version=_engine_version(row, engine),
        options=Options(two_batch_overlap=False, dtypes=dtypes),
        input_tokens=round(input_tokens * setting.prompt_growth),
        output_tokens=output_tokens,
        concurrency=row.concurrency or 1,
        prefill=prefill,
        decode=decode,
        disaggregated=row.mode == "disagg",
        draft_tokens=row.draft_tokens or 0,
        admission=setting.admission,
        captured_prompts=setting.captured_prompts,
        one_prompt_a_step=setting.one_prompt_a_step,
        waves=published_waves(),
        mixes_prefill=setting.mixes_prefill,
        shortest_share=shortest_share(row, _run_as(model)),
        frontends=row.frontends or 1,
        cold_tokens=setting.cold_tokens,
        memory_share=memory_share,
    )


def _run_as(model: Model) -> str:
    """Return the name under which runs of a model's layers were published."""
    return TWINS.get(model.name, model.name)


def _engine_version(row: ServingRow, engine: Engine) -> str:
    """Return the engine's release; disaggregated TensorRT-LLM runs state that of Dynamo, in whose container it came."""
    version = row.backend_version or ""
    if engine == "tensorrt-llm" and row.mode == "disagg" and not _OWN_CANDIDATE.match(version):
        return next((known for dynamo, known in _DYNAMO.items() if version.startswith(f"{dynamo}.")), version)
    return version


def _stated(model: Model, label: Workers) -> WorkerCase:
    """Return workers of one kind as their label has them."""
    return WorkerCase(_strategy(model, label), label.workers or 1, label.max_sequences)


@cache
def row_model(name: str) -> Model:
    """Return the catalogue's model of a published name such as `Qwen/Qwen3-235B-A22B-FP8`."""
    return load_catalog_model(model_name(name))


@cache
def row_cluster(system: str, num_gpus: int) -> Cluster:
    """Return so many GPUs, or the next larger number that comes in whole nodes, of a system such as `h200_sxm`."""
    device = device_name(system)
    entry = ALIASES.get(device, device) if device is not None else None
    if entry not in catalog_clusters():
        raise SkippedRow(f"system {system!r} is not in the catalogue")
    whole = load_cluster(entry)
    node, domain = whole.gpus_per_node, max(whole.gpus_per_node, whole.tiers[0].num_gpus)
    step = 1 if num_gpus <= node else node if num_gpus <= domain else domain
    count = math.ceil(num_gpus / step) * step
    try:
        return load_cluster(f"{entry}x{count}")
    except InputError as error:
        raise SkippedRow(str(error)) from None


def row_format(row: ServingRow) -> Dtype | None:
    """Return the format that a row states, or its checkpoint's name; raise SkippedRow where it states another."""
    if row.precision is None or row.precision.lower() == "auto":
        return weight_format(row.model)
    stated = weight_format(row.precision)
    if stated is None:
        raise SkippedRow(f"precision {row.precision!r} is not known")
    return stated


def row_dtypes(row: ServingRow, model: Model) -> DtypePolicy:
    """Return the number formats that the row's precision stands for; not stated, the checkpoint's own.

    FP4 and INT4 checkpoints of mixtures keep attention in BF16 and quantize the experts (NVFP4; MXFP4 in gpt-oss).
    """
    stated = row_format(row)
    dense: Dtype = model.weight_dtype
    experts: Dtype = model.expert_dtype
    if stated and model.expert_dtype != "mxfp4":
        of_experts_only = stated in {"fp4", "int4"} and model.moe is not None
        dense = (_DENSE_OF_FP4.get(model.name, "bf16") if stated == "fp4" else "bf16") if of_experts_only else stated
        experts = stated
    narrow = min(BYTES_PER_ELEMENT[dense], BYTES_PER_ELEMENT[experts]) < BYTES_PER_ELEMENT["bf16"]
    narrow = narrow and experts not in {"int4", "int8"}  # of those, activations and cache stay wide
    sent: Dtype = "fp8" if narrow else "bf16"
    # the published runs of quantized checkpoints quantize the cache too, others where the engine does by itself; those
    # of MXFP4 not where it has no products (TensorRT-LLM, perf-overview.md: "Hopper: use auto")
    upcast = experts == "mxfp4" and row_cluster(row.system, 1).device.compute_dtype("mxfp4") == "bf16"
    told = has_published_lengths(row) or quantizes_cache(engine_name(row.backend))
    cached: Dtype = "fp8" if narrow and told and not upcast else "bf16"
    in_blocks = model.block_scales or _run_as(model) in _FP8_IN_BLOCKS or _QWEN_FP8.fullmatch(row.model) is not None
    return DtypePolicy(
        weights=dense,
        block_scales=dense == "fp8" and in_blocks,
        experts=experts,
        dispatch=sent,
        kv_cache=cached,
    )


def _num_workers(row: ServingRow, strategy: Strategy) -> int:
    """Return how many workers of a strategy an aggregated row has; raise SkippedRow where its GPUs are no whole number.

    A row that leaves out how its attention is data parallel counts GPUs without it: tp x pp of them are one worker,
    which has as many more as its experts say.
    """
    if row.num_gpus is None or (row.attention_dp is None and row.num_gpus == row.worker_gpus):
        return 1
    workers, rest = divmod(row.num_gpus, strategy.num_gpus)
    if rest:
        raise SkippedRow(f"num_gpus = {row.num_gpus} is no whole number of workers of {strategy.num_gpus} GPUs")
    return workers


def _strategy(model: Model, stated: Degrees) -> Strategy:
    """Return how a worker is divided.

    What is not stated is 1, or follows from the other mesh. A tp that does not divide the model's heads or experts
    cannot be meant as it stands: it is the number of GPUs of a worker whose attention is data parallel, the only way in
    which it can use so many.
    """
    tp, pp, attn_dp = stated.tp or 1, stated.pp or 1, stated.attention_dp or 1
    moe_tp, moe_ep = stated.moe_tp or 1, stated.moe_ep or 1
    if model.moe is None:
        strategy = Strategy(tp=tp, pp=pp, etp=tp)
    else:
        experts = moe_tp * moe_ep
        if experts > tp * attn_dp and experts % tp == 0:
            attn_dp = experts // tp
        elif experts < tp * attn_dp and (tp * attn_dp) % experts == 0:
            moe_tp *= tp * attn_dp // experts
        elif experts != tp * attn_dp:
            raise SkippedRow(f"tp x attention_dp = {tp * attn_dp} and moe_tp x moe_ep = {experts} are different GPUs")
        strategy = Strategy(tp=tp, pp=pp, attn_dp=attn_dp, ep=moe_ep, etp=moe_tp)
        if attn_dp == 1 and not _runs(model, strategy):
            strategy = Strategy(tp=1, pp=pp, attn_dp=tp, ep=tp)
    return strategy


def _runs(model: Model, strategy: Strategy) -> bool:
    """Return whether engines run a strategy: a legal one, or one whose experts they pad to whole blocks of scales.

    A rank that had less than a block would hold padding for the most part.
    """
    rules = {each.rule for each in broken_rules(model, strategy)}
    width = model.moe.expert_intermediate_size if model.moe is not None else 0
    padded = width % strategy.etp == 0 and width // strategy.etp >= SCALE_BLOCKS.get(model.expert_dtype, 1)
    return rules <= ({"expert-width-divides-over-etp"} if padded else set[str]())
