"""Plans for the tests of verification, made from the pieces below the search."""

from __future__ import annotations

from functools import cache

from moiety.calibration.catalog import load_calibration
from moiety.cluster.catalog import load_cluster
from moiety.model.catalog import load_catalog_model
from moiety.plan import DtypePolicy, Options, Plan, Pool, Provenance, Schedule
from moiety.projection.project import evaluate
from moiety.strategy.strategy import Strategy, parse_strategy
from moiety.verify.case import best_plan
from moiety.workload.catalog import load_workload
from moiety.workload.workload import Workload

CALIBRATION = load_calibration()
OFF = Options(
    all_to_all="flat",
    two_batch_overlap=False,
    priority_scheduling=False,
    activation_checkpointing=False,
    arena=False,
    flash_attention=False,
    fused_kernels=False,
)
SOME = OFF.model_copy(update={"two_batch_overlap": True, "flash_attention": True})
ALL = Options()
VARIANTS = {"baseline": OFF, "original": SOME, "enhanced": ALL}


def decided(model: str, cluster: str, workload: Workload, strategy: Strategy, options: Options = ALL) -> Plan:
    """Return the plan of a strategy with the schedule that serves it best, every layer simulated."""
    place_holder = Pool(
        role=workload.kind,
        first_rank=0,
        strategy=strategy,
        schedule=Schedule(num_microbatches=1, prefill_tokens=1, prompt_tokens=1, decode_sequences=16, context_tokens=1),
        placement=None,
    )
    base = Plan(
        name="test",
        model=load_catalog_model(model),
        cluster=load_cluster(cluster),
        workload=workload,
        options=options,
        pools=(place_holder,),
        provenance=Provenance(moiety_version="test", calibration=CALIBRATION.name),
    )
    found = best_plan(base, strategy, options, CALIBRATION)
    assert isinstance(found, Plan), found
    return evaluate(found, CALIBRATION).plan


@cache
def reference_plan() -> Plan:
    """Return the reference scenario's plan with the strategy that its claims are about."""
    return decided(
        "reference-moe-235b", "reference-128", load_workload("reference-prefill"), parse_strategy("ep64_tp2", 128)
    )


@cache
def small_plan() -> Plan:
    """Return a quick plan that has everything: experts on two nodes, tensor parallelism, two micro-batches."""
    workload = Workload(name="prompts", kind="prefill", input_tokens=2048, tokens_in_flight=8 * 8192)
    return decided("mixtral-8x7b", "h100x16", workload, parse_strategy("ep8_tp2", 16))


@cache
def decode_plan() -> Plan:
    """Return a plan for decoding."""
    workload = Workload(name="tokens", kind="decode", input_tokens=1024, output_tokens=256, concurrency=512)
    return decided("olmoe-1b-7b", "h100x8", workload, parse_strategy("ep8", 8))


@cache
def training_plan() -> Plan:
    """Return a plan for training, in pipeline stages."""
    workload = Workload(name="lessons", kind="training", input_tokens=2048, tokens_in_flight=8 * 16 * 2048)
    options = Options(dense_parameter_sharding=True, dtypes=DtypePolicy())
    return decided("qwen3-30b-a3b", "h100x16", workload, parse_strategy("ep8_pp2", 16), options)


@cache
def mixed_plan() -> Plan:
    """Return a plan for serving prompts and their answers together."""
    workload = Workload(name="chats", kind="mixed", input_tokens=1024, output_tokens=256, concurrency=250)
    return decided("mixtral-8x7b", "h100x8", workload, parse_strategy("ep8", 8))


@cache
def hybrid_plan() -> Plan:
    """Return a plan of a model whose layers have one part each: Mamba-2, attention, or experts in a latent."""
    workload = Workload(name="chats", kind="mixed", input_tokens=1024, output_tokens=256, concurrency=250)
    return decided("nemotron-3-super-120b-a12b", "h200x8", workload, parse_strategy("ep4_tp2", 8))


@cache
def sparse_plan() -> Plan:
    """Return a plan of a model whose latent attention sees the tokens that an indexer picks."""
    workload = Workload(name="chats", kind="mixed", input_tokens=4096, output_tokens=256, concurrency=250)
    return decided("glm-5", "h200x64", workload, parse_strategy("ep16_tp4", 64))


@cache
def dense_plan() -> Plan:
    """Return a plan of a model without experts, under a rate of arrivals."""
    workload = Workload(name="visits", kind="mixed", input_tokens=512, output_tokens=128, request_rate_per_s=2.0)
    return decided("llama-3.1-8b", "h100x8", workload, parse_strategy("tp2_x4", 8))
