"""What a row of a training run describes, and what the cost model says of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.calibration.catalog import calibration_for
from moiety.calibration.training import load_training
from moiety.cluster.cluster import Cluster
from moiety.model.attention import GroupedQueryAttention
from moiety.plan import DtypePolicy, Options
from moiety.projection.training_casts import four_bit_cast, tensor_cast
from moiety.projection.training_run import TrainingRun, training_parts
from moiety.strategy.legality import broken_rules
from moiety.strategy.strategy import Strategy
from moiety.validation.published_flops import published_flops_per_token
from moiety.validation.serving_case import row_cluster, row_model
from moiety.validation.skipped import SkippedRow
from moiety.validation.training_recipes import recipe_format, recipe_of, referred_degrees, stated_release
from moiety.validation.transfer_case import row_device

if TYPE_CHECKING:
    from moiety.dtypes import Dtype
    from moiety.model.model import Model
    from moiety.projection.training_casts import Cast
    from moiety.validation.system_row import SystemRow

_MODELS = {
    "deepseekv3": "deepseek-v3",
    "gpt oss 120b": "gpt-oss-120b",
    "kimi_k2": "kimi-k2",
    "llama3_8b": "llama-3.1-8b",
    "llama3_70b": "llama-3.1-70b",
    "llama3.1_405b": "llama-3.1-405b",
    "nemotron_3_nano": "nemotron-3-nano-30b-a3b",
    "nemotron_3_super": "nemotron-3-super-120b-a12b",
    "nemotron_3_ultra": "nemotron-3-ultra-550b-a55b",
    "nemotron_3_5_lightning": "nemotron-3.5-lightning-30b-a3b",
    "qwen3_30b_a3b": "qwen3-30b-a3b",
    "qwen3_235b_a22b": "qwen3-235b-a22b",
}
"""What frameworks call models of the catalogue."""
_REMARK = re.compile(r" *\(.*\)$")
_GLOBAL, _MICRO, _TOKENS = re.compile(r"GBS (\d+)"), re.compile(r"MBS (\d+)"), re.compile(r"(\d+)M tokens$")
_DEGREES = ("tp", "cp", "pp", "ep", "etp", "vp")
_RACK_GPUS = 64
"""GPUs of a rack that a job of whole multiples of so many uses, where a domain of links has some to spare."""
_SHARDED = "FSDP"
_FUSED = "26.04"
"""The first container whose Transformer Engine makes both copies of rows in NVFP4 in one pass."""
_WITHOUT_PREDICTIONS = "(w/o MTP)"
_SPLIT_EXPERTS = {"MCore", "TP+EP+DP"}
"""Methods that divide experts over the attention's tensor-parallel ranks (Parallel Folding, arXiv 2504.14960)."""


@dataclass(frozen=True, slots=True)
class TrainedDeployment:
    """What training runs are compared by: they train the same under one load, in different ways."""

    load: tuple[object, ...]
    """GPUs, sequence length and tokens of a step."""
    way: tuple[object, ...]
    """Precision, degrees and micro-batch, and what a recipe adds to them."""
    release: str
    """Of the framework's container; "" where none is stated."""


def trained_deployment(row: SystemRow) -> TrainedDeployment:
    """Return what a training row is compared by; raise SkippedRow where it cannot be predicted."""
    run = training_run(row)
    beside = (run.captured, run.overlaps_exchange, run.options.all_to_all, run.recomputed, run.wide_layers)
    precision = recipe_format(row.precision or "")
    way = (precision, run.strategy, run.virtual_stages, run.microbatch_sequences, run.options.fully_sharded, *beside)
    return TrainedDeployment((row.n_gpus, row.isl, run.tokens_per_step), way, stated_release(row))


def predict_training(row: SystemRow) -> dict[str, float]:
    """Return the predicted metrics of a training row; raise SkippedRow with the reason where there are none."""
    run = training_run(row)
    parts = training_parts(run, calibration_for(run.cluster.device.architecture))
    step_s = parts.step_s(load_training())
    tokens = run.tokens_per_step / step_s / run.strategy.num_gpus
    tflops = tokens * published_flops_per_token(row, run) / 1e12
    predicted = {"step_s": step_s, "tok_s_per_gpu": tokens}
    predicted |= dict.fromkeys(("model_tflops_per_gpu", "tflops_per_gpu", "tflops_forced_balance"), tflops)
    return predicted | dict.fromkeys(("mfu", "mfu_bf16"), 1e12 * tflops / run.cluster.device.peak("bf16"))


def training_run(row: SystemRow) -> TrainingRun:
    """Return what `row` describes; raise SkippedRow with the reason where something is missing or not modelled."""
    name = _REMARK.sub("", row.model.lower())
    model = row_model(_MODELS.get(name, name))
    if "same_as" in row.parallel:
        return training_run(row.model_copy(update={"parallel": referred_degrees(row, model.name)}))
    if not row.n_gpus or not row.isl:
        raise SkippedRow("the number of GPUs or the sequence length is not stated")
    degrees = {name: known for name in _DEGREES if (known := row.degree(name)) is not None}
    dtype = _format(row)
    tp, cp, pp = (degrees.get(name, 1) for name in ("tp", "cp", "pp"))
    ep = degrees.get("ep", 1) if model.moe is not None else 1
    split = tp if row.parallel.get("method") in _SPLIT_EXPERTS else 1
    etp = degrees.get("etp", split) if model.moe is not None else tp * cp
    strategy = _strategy(tp, cp, pp, (ep, etp), row.n_gpus)
    if broken_rules(model, strategy):
        raise SkippedRow(f"the degrees do not divide {model.name}")
    size, count = _microbatches(row, strategy.num_groups)
    cluster = _cluster(row)
    recipe = recipe_of(row, model.name, cluster.device.name)
    sharded = bool(row.parallel.get("fsdp")) or _SHARDED in f"{row.parallel.get('method')} {row.notes}"
    summed = "bf16" if sharded else "fp32"  # gradients, in the format in which other runs' copies are reduced
    sends_once = recipe is not None and recipe.dispatcher != "alltoall"
    known = recipe is not None and recipe.pp == pp
    if pp > 1 and not known and "vp" not in row.parallel:
        raise SkippedRow("how many parts each pipeline stage has is not stated")
    staged = recipe.vp if recipe is not None and known and pp > 1 else 1
    return TrainingRun(
        model=model,
        cluster=cluster,
        strategy=strategy,
        options=Options(
            two_batch_overlap=False,
            activation_checkpointing=False,
            fused_kernels=False,
            flash_attention=not _has_sinks(model),
            all_to_all="hierarchical" if sends_once else "flat",
            fully_sharded=sharded,
            dtypes=DtypePolicy(weights=dtype, experts=dtype, critical=summed),
        ),
        sequence_tokens=int(row.isl),
        microbatch_sequences=size,
        num_microbatches=count,
        virtual_stages=degrees.get("vp", staged),
        recomputed="layers" if "recompute full" in row.notes else recipe.recomputed if recipe else "nothing",
        captured=frozenset(recipe.captured) if recipe else frozenset(),
        predictions=recipe.predictions if recipe and _WITHOUT_PREDICTIONS not in row.model else 0,
        formats=recipe.formats if recipe else {},
        wide_layers=recipe.wide_layers if recipe else 0,
        casts=_casts(row, cluster.device.architecture),
        overlaps_exchange=(recipe is not None and recipe.overlapped_exchange) or "A2A overlap" in row.notes,
    )


def _microbatches(row: SystemRow, num_groups: int) -> tuple[int, int]:
    """Return a micro-batch's sequences, and how many of those each data-parallel group has."""
    stated, microbatch = _GLOBAL.match(row.batch or ""), _MICRO.search(row.batch or "")
    tokens = _TOKENS.match(row.batch or "")
    if stated:
        sequences = int(stated[1])
    elif tokens:
        sequences = round(int(tokens[1]) * 2**20 / (row.isl or 1))
    else:
        raise SkippedRow("the global batch is not stated")
    size = int(microbatch[1]) if microbatch else 1
    count, rest = divmod(sequences, size * num_groups) if size else (0, 0)
    if rest or not count:
        raise SkippedRow("the global batch does not divide over the data-parallel groups")
    return size, count


def _has_sinks(model: Model) -> bool:
    """Return whether attention has sinks: its kernels then take the time of some that write their scores to memory.

    Nobody says what they do; the runs of gpt-oss take that long, in every format and on every device.
    """
    return any(isinstance(block.attention, GroupedQueryAttention) and block.attention.sinks for block in model.blocks)


def _format(row: SystemRow) -> Dtype:
    """Return the format of the products' operands; master weights and gradients are wider."""
    stated = (row.precision or "").lower()
    formats: tuple[Dtype, ...] = ("bf16", "fp8", "fp4")
    for dtype in formats:
        if dtype in stated:
            return dtype
    raise SkippedRow(f"precision {row.precision!r} is not known")


def _casts(row: SystemRow, architecture: str) -> dict[Dtype, Cast]:
    """Return how a run's rows become narrow, by its precision's name and its release."""
    release = stated_release(row)
    found: dict[Dtype, Cast] = {"fp4": four_bit_cast(fused=not release or release >= _FUSED)}
    if recipe_format(row.precision or "") == "fp8":
        found["fp8"] = tensor_cast(architecture)
    return found


def _strategy(tp: int, cp: int, pp: int, experts: tuple[int, int], num_gpus: int) -> Strategy:
    """Return the strategy whose stages are as small as both meshes allow; the rest are data-parallel copies.

    `experts` is the experts' mesh, (ep, etp). Context parallelism takes several copies where it is wider than that.
    """
    ep, etp = experts
    stage = math.lcm(tp, ep * etp)
    if stage % (tp * cp) and (tp * cp) % stage:
        stage = math.lcm(tp * cp, stage)
    instances, rest = divmod(num_gpus, stage * pp)
    if rest or not instances:
        raise SkippedRow(f"stages of {stage} GPUs x pp {pp} do not divide {num_gpus} GPUs")
    if stage != ep * etp:
        raise SkippedRow("the experts' mesh is narrower than the attention's")
    if cp > 1 and instances * (stage // tp) % cp:
        raise SkippedRow(f"context parallelism of {cp} does not divide the data-parallel groups")
    return Strategy(tp=tp, pp=pp, attn_dp=stage // tp, ep=ep, etp=etp, instances=instances, cp=cp)


def _cluster(row: SystemRow) -> Cluster:
    """Return the row's GPUs; of racks that hold more, 64 of each where those make up the job."""
    count = row.n_gpus or 1
    name = row_device(row).name
    whole = row_cluster(name, count)
    rack = whole.tiers[0]
    if rack.num_gpus <= _RACK_GPUS or count % _RACK_GPUS:
        return whole
    tiers = [rack.model_copy(update={"num_gpus": _RACK_GPUS})]
    tiers += [tier.model_copy(update={"num_gpus": count}) for tier in whole.tiers[1:2]] if count > _RACK_GPUS else []
    return Cluster(
        name=f"{name}x{count}, {_RACK_GPUS} of each rack",
        device=whole.device,
        num_nodes=count // whole.gpus_per_node,
        gpus_per_node=whole.gpus_per_node,
        tiers=tuple(tiers),
        source=whole.source,
        assumed=whole.assumed,
    )
