"""Plans of many kinds to draw: every way to divide a model, small and large."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moiety.cluster.catalog import load_cluster
from moiety.model.catalog import load_catalog_model
from moiety.placement.linear import place_linear
from moiety.plan import Options, Phase, Plan, Pool, Projection, Provenance, Schedule
from moiety.strategy.strategy import Strategy, parse_strategy
from moiety.workload.workload import Workload

if TYPE_CHECKING:
    from moiety.model.model import Model

PREFILL = Schedule(num_microbatches=2, prefill_tokens=16479, prompt_tokens=8192, decode_sequences=0, context_tokens=0)
DECODE = Schedule(num_microbatches=2, prefill_tokens=0, prompt_tokens=0, decode_sequences=64, context_tokens=4096)
MIXED = Schedule(num_microbatches=2, prefill_tokens=512, prompt_tokens=4096, decode_sequences=32, context_tokens=2000)

Part = tuple[str, int, Phase, Schedule]
"""Strategy, GPUs, phase and schedule of a pool."""

DEPLOYMENTS: dict[str, tuple[str, str, tuple[Part, ...], dict[str, Any]]] = {
    "one-node-tp": ("mixtral-8x7b", "h100x8", (("tp8", 8, "prefill", PREFILL),), {}),
    "one-gpu": ("olmoe-1b-7b", "h100x1", (("tp1", 1, "decode", DECODE),), {}),
    "one-node-ep": ("mixtral-8x7b", "h100x8", (("tp1_dp8_ep8", 8, "decode", DECODE),), {}),
    "replicas": ("llama-3.1-8b", "h100x16", (("tp2_pp2_x4", 16, "prefill", PREFILL),), {}),
    "tp-over-nodes": ("reference-moe-235b", "h100x16", (("tp16", 16, "prefill", PREFILL),), {}),
    "two-kinds": ("deepseek-v3", "h200x32", (("tp1_dp32_ep32", 32, "decode", DECODE),), {}),
    "windows": ("gpt-oss-20b", "h100x8", (("tp2_dp4_ep8", 8, "prefill", PREFILL),), {}),
    "tokens-gathered": ("mixtral-8x7b", "h100x8", (("tp2_dp4_ep1", 8, "prefill", PREFILL),), {}),
    "pipeline": ("deepseek-v3", "h200x32", (("tp4_dp2_ep8_pp4", 32, "prefill", PREFILL),), {"fused_kernels": False}),
    "pipeline-in-node": ("olmoe-1b-7b", "h100x8", (("tp2_pp4", 8, "prefill", PREFILL),), {}),
    "mixed": ("qwen3-next-80b-a3b", "h100x16", (("tp2_dp8_ep16", 16, "mixed", MIXED),), {}),
    "hybrid": ("nemotron-3-nano-30b-a3b", "h100x8", (("tp2_dp4_ep8", 8, "mixed", MIXED),), {}),
    "redundant": ("olmoe-1b-7b", "h100x8", (("ep8", 8, "decode", DECODE),), {"redundant_experts": 8}),
    "training": (
        "olmoe-1b-7b",
        "h100x16",
        (("ep4_tp2_x2", 16, "training", PREFILL),),
        {"fully_sharded": True},
    ),
    "training-pipeline": (
        "reference-moe-235b",
        "reference-128x32",
        (("tp2_dp4_ep8_pp2_x2", 32, "training", PREFILL),),
        {"dense_parameter_sharding": True, "all_to_all": "flat"},
    ),
    "disaggregated": (
        "deepseek-v3",
        "h200x48",
        (("tp4_dp4_ep16", 16, "prefill", PREFILL), ("tp1_dp32_ep32", 32, "decode", DECODE)),
        {},
    ),
    "reference": ("reference-moe-235b", "reference-128", (("ep64_tp2", 128, "prefill", PREFILL),), {}),
    "folded": ("deepseek-v3", "h200x1024", (("tp4_dp64_ep256_x4", 1024, "decode", DECODE),), {}),
    "folded-pipeline": ("deepseek-v3", "h200x1024", (("tp8_dp8_ep64_pp16", 1024, "prefill", PREFILL),), {}),
    "folded-replicas": ("llama-3.1-8b", "h100x512", (("tp2_pp2_x128", 512, "prefill", PREFILL),), {}),
    "folded-training": ("olmoe-1b-7b", "h100x512", (("ep8_pp4_x16", 512, "training", PREFILL),), {}),
}


def deployment(name: str) -> Plan:
    """Return the plan of that name."""
    model, cluster, parts, options = DEPLOYMENTS[name]
    return make_plan(model, cluster, parts, **options)


def make_plan(model_name: str, cluster_name: str, parts: tuple[Part, ...], **options: object) -> Plan:
    """Return a plan with its pools one after the other."""
    model = load_catalog_model(model_name)
    chosen = Options.model_validate(options)
    pools: list[Pool] = []
    first = 0
    for text, num_gpus, role, schedule in parts:
        pools.append(make_pool(model, parse_strategy(text, num_gpus), role, schedule, first, chosen.redundant_experts))
        first += num_gpus
    return Plan(
        name="enhanced",
        model=model,
        cluster=load_cluster(cluster_name),
        workload=Workload(name="test", kind="prefill", input_tokens=8192, tokens_in_flight=2**20),
        options=chosen,
        pools=tuple(pools),
        provenance=Provenance(moiety_version="0", calibration="none"),
    )


def make_pool(
    model: Model, strategy: Strategy, role: Phase, schedule: Schedule, first_rank: int = 0, redundant: int = 0
) -> Pool:
    """Return a pool whose experts lie in order."""
    placement = None
    if model.moe is not None:
        placement = place_linear(
            layers=[layer for layer, block in enumerate(model.layers) if block.moe is not None],
            num_experts=model.moe.num_experts,
            redundant_experts=redundant,
            num_gpus=strategy.gpus_per_stage,
            num_nodes=1,
            expert_tp=strategy.etp,
        )
    return Pool(role=role, first_rank=first_rank, strategy=strategy, schedule=schedule, placement=placement)


def some_projection() -> Projection:
    """Return figures to be shown."""
    return Projection(
        throughput_tokens_per_s=614_400.0,
        throughput_tokens_per_s_per_gpu=4_800.0,
        ttft_s=1.25,
        tpot_s=None,
        step_s=0.5,
        model_flops_utilization=0.41,
        exposed_communication_fraction=0.1,
        overlap_fraction=0.8,
        memory_bytes_per_gpu={"weights": 21_000_000_000},
        cross_node_bytes_per_token=1e6,
        power_w_per_gpu=550.0,
        tokens_per_joule=8.7,
        provenance={},
    )
