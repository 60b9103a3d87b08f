"""Small models, clusters and scenarios that the laws of the core are tried on."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from moiety.calibration.catalog import load_calibration
from moiety.cluster.catalog import load_cluster, load_device
from moiety.cluster.cluster import Cluster, LinkTier
from moiety.graph.graph import build_step_graph
from moiety.model.attention import GroupedQueryAttention, LinearAttention, MultiHeadLatentAttention
from moiety.model.feed_forward import DenseFeedForward, MoeFeedForward
from moiety.model.model import Block, Model
from moiety.plan import Options, Phase, Plan, Pool, Schedule
from moiety.projection.project import evaluate
from moiety.projection.scenario import Scenario
from moiety.projection.schedule import schedules
from moiety.search.judge import place
from moiety.search.options import default_options
from moiety.search.planner import assemble
from moiety.strategy.strategy import Strategy, parse_strategy
from moiety.workload.workload import Workload

if TYPE_CHECKING:
    from moiety.graph.graph import Graph
    from moiety.model.attention import Attention

CALIBRATION = load_calibration()
GQA = GroupedQueryAttention(num_heads=16, num_kv_heads=4, head_dim=64)
WINDOWED = GroupedQueryAttention(num_heads=16, num_kv_heads=4, head_dim=64, sliding_window=128)
MLA = MultiHeadLatentAttention(
    num_heads=16, q_lora_rank=256, kv_lora_rank=128, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64
)
MLA_DIRECT = MLA.model_copy(update={"q_lora_rank": None})
LINEAR = LinearAttention(
    variant="gated_delta",
    num_key_heads=8,
    num_value_heads=16,
    key_head_dim=64,
    value_head_dim=64,
    conv_kernel_size=4,
    chunk_tokens=64,
)
MAMBA = LinearAttention(
    variant="mamba2",
    num_key_heads=4,
    num_value_heads=16,
    key_head_dim=128,
    value_head_dim=64,
    conv_kernel_size=4,
    conv_bias=True,
    chunk_tokens=128,
)
ATTENTIONS: dict[str, Attention] = {
    "gqa": GQA,
    "gqa of a low q rank": GQA.model_copy(update={"q_lora_rank": 256}),
    "windowed": WINDOWED,
    "mla": MLA,
    "mla without q rank": MLA_DIRECT,
    "linear": LINEAR,
    "mamba": MAMBA,
}


def moe(
    num_experts: int = 16, top_k: int = 2, groups: int = 1, top_k_groups: int = 1, shared: int = 0
) -> MoeFeedForward:
    """Return a small mixture of experts."""
    return MoeFeedForward(
        num_experts=num_experts,
        top_k=top_k,
        expert_intermediate_size=512,
        shared_intermediate_size=shared,
        num_groups=groups,
        top_k_groups=top_k_groups,
    )


def small_model(
    attention: Attention = GQA,
    part: MoeFeedForward | DenseFeedForward | None = None,
    *,
    num_layers: int = 6,
    dense_layers: int = 0,
) -> Model:
    """Return a model of `num_layers` small layers, the first `dense_layers` of them dense."""
    blocks = [Block(attention=attention, feed_forward=part or moe())]
    if dense_layers:
        blocks.append(Block(attention=attention, feed_forward=DenseFeedForward(intermediate_size=2048)))
    return Model(
        name="small",
        architecture="test",
        hidden_size=1024,
        vocab_size=32_000,
        blocks=tuple(blocks),
        layer_blocks=(1,) * dense_layers + (0,) * (num_layers - dense_layers),
    )


def hybrid_model() -> Model:
    """Return a model whose layers are Mamba-2, attention, a network without a gate, or experts in a latent."""
    latent = moe(shared=512).model_copy(update={"gated": False, "latent_size": 256})
    network = DenseFeedForward(intermediate_size=2048, gated=False)
    mixers = (MAMBA, GQA)
    return Model(
        name="hybrid",
        architecture="test",
        hidden_size=1024,
        vocab_size=32_000,
        blocks=(
            *(Block(attention=each, feed_forward=None, num_norms=1) for each in mixers),
            *(Block(attention=None, feed_forward=each, num_norms=1) for each in (network, latent)),
        ),
        layer_blocks=(0, 2, 0, 1, 3, 0, 3),
    )


def dense_model(num_layers: int = 6) -> Model:
    """Return a small model without experts."""
    return small_model(GQA, DenseFeedForward(intermediate_size=2048), num_layers=num_layers)


def tiered(*spans: int, per_node: int, bandwidths: tuple[float, ...] = (300e9, 50e9, 25e9)) -> Cluster:
    """Return H100 nodes whose tiers of links span so many GPUs each."""
    return Cluster(
        name="tiers",
        device=load_device("h100"),
        num_nodes=spans[-1] // per_node,
        gpus_per_node=per_node,
        tiers=tuple(
            LinkTier(name=f"tier{index}", num_gpus=span, bandwidth_bytes_per_s=rate, per="gpu", latency_s=2e-6)
            for index, (span, rate) in enumerate(zip(spans, bandwidths, strict=False))
        ),
    )


def prefill_load(tokens: int = 131_072, prompt: int = 1024) -> Workload:
    """Return a batch of prompts."""
    return Workload(name="prefill", kind="prefill", input_tokens=prompt, tokens_in_flight=tokens)


def decode_load(concurrency: int = 512, context: int = 1024) -> Workload:
    """Return a batch of sequences that are decoded."""
    return Workload(name="decode", kind="decode", input_tokens=context, output_tokens=128, concurrency=concurrency)


def mixed_load(concurrency: int = 256, prompt: int = 512, output: int = 128) -> Workload:
    """Return requests that are served."""
    return Workload(name="mixed", kind="mixed", input_tokens=prompt, output_tokens=output, concurrency=concurrency)


def training_load(tokens: int = 262_144, length: int = 1024) -> Workload:
    """Return a batch to train on."""
    return Workload(name="training", kind="training", input_tokens=length, tokens_in_flight=tokens)


LOADS: dict[Phase, Workload] = {
    "prefill": prefill_load(),
    "decode": decode_load(),
    "mixed": mixed_load(),
    "training": training_load(),
}


def scenario(model: Model, cluster: str | Cluster, workload: Workload) -> Scenario:
    """Return a scenario of the default engine and calibration."""
    where = load_cluster(cluster) if isinstance(cluster, str) else cluster
    return Scenario(model, where, workload, "moiety", CALIBRATION)


def plan_for(case: Scenario, strategy: str | Strategy, options: Options | None = None, cut: int = 0) -> Plan:
    """Return a plan of decisions for a strategy, the `cut`-th schedule that its options allow, not yet evaluated."""
    chosen = parse_strategy(strategy, case.cluster.num_gpus) if isinstance(strategy, str) else strategy
    options = options or default_options(case)
    phase = case.workload.kind
    pool = Pool(
        role=phase,
        first_rank=0,
        strategy=chosen,
        schedule=schedules(case.workload, phase, chosen, options)[cut],
        placement=place(case, chosen, options),
    )
    return assemble(case, (pool,), options, "test", "0")


def evaluated(case: Scenario, strategy: str, options: Options | None = None) -> Plan:
    """Return an evaluated plan."""
    return evaluate(plan_for(case, strategy, options), case.calibration).plan


@cache
def served_plan(strategy: str = "ep16_tp1") -> Plan:
    """Return a small evaluated plan of one prefill pool on 16 GPUs of two nodes."""
    return evaluated(scenario(small_model(), "h100x16", prefill_load()), strategy)


def schedule_of(phase: Phase, tokens: int = 512, *, context: int = 256, microbatches: int = 2) -> Schedule:
    """Return a schedule of `tokens` tokens a micro-batch, a quarter of them decoded in the mixed phase."""
    decoded = {"prefill": 0, "training": 0, "decode": tokens, "mixed": tokens // 4}[phase]
    return Schedule(
        num_microbatches=microbatches,
        prefill_tokens=tokens - decoded,
        prompt_tokens=context if tokens > decoded else 0,
        decode_sequences=decoded,
        context_tokens=context if decoded else 0,
    )


def graph_of(model: Model, strategy: Strategy, phase: Phase = "prefill", options: Options | None = None) -> Graph:
    """Return the graph of one micro-batch."""
    return build_step_graph(model, strategy, schedule_of(phase), options or Options(), training=phase == "training")


def faster(case: Scenario, *, gpu: float = 1.0, memory: float = 1.0, link: float = 1.0, tier: int = -1) -> Scenario:
    """Return the scenario on hardware that is faster by these factors, its links on the outermost tier."""
    device = case.cluster.device
    quick = device.model_copy(
        update={
            "peak_flops_per_s": {name: peak * gpu for name, peak in device.peak_flops_per_s.items()},
            "memory_bandwidth_bytes_per_s": device.memory_bandwidth_bytes_per_s * memory,
        }
    )
    tiers = list(case.cluster.tiers)
    tiers[tier] = tiers[tier].model_copy(update={"bandwidth_bytes_per_s": tiers[tier].bandwidth_bytes_per_s * link})
    return replace(case, cluster=case.cluster.model_copy(update={"device": quick, "tiers": tuple(tiers)}))
