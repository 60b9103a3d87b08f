"""Plan, the waist: everything above it decides, everything below it uses the decision."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, computed_field, model_validator

from moiety.calibration.calibration import Basis, Calibration, Engine
from moiety.calibration.tables import TableSource
from moiety.cluster.cluster import Cluster
from moiety.dtypes import Dtype
from moiety.model.model import Model
from moiety.placement.placement import Placement
from moiety.placement.serving.routed_traffic import MeasuredPlacement
from moiety.records import DerivedRecord, Record
from moiety.strategy.strategy import Axis, Strategy
from moiety.workload.workload import Workload

SCHEMA_VERSION = 1

Phase = Literal["prefill", "decode", "mixed", "training"]
AllToAll = Literal["flat", "dedup", "hierarchical"]
PlacementMethod = Literal["linear", "round-robin", "eplb", "eplb-global", "balance", "joint"]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]


class DtypePolicy(Record):
    """Number format of each class of data."""

    weights: Dtype = "bf16"
    """Dense weights: attention, dense layers, shared experts."""
    block_scales: bool = Field(default=False, exclude_if=lambda value: not value)
    """Dense FP8 weights have a scale for every block of them, not one for all: their products take other kernels."""
    experts: Dtype = "bf16"
    """Routed experts' weights."""
    activations: Dtype = "bf16"
    critical: Dtype = "fp32"
    """Router logits, softmax, norms and reductions."""
    kv_cache: Dtype = "bf16"
    state: Dtype = Field(default="fp32", exclude_if=lambda value: value == "fp32")
    """States of linear attention between tokens; the last tokens that its convolution sees are kept as activations."""
    dispatch: Dtype = "bf16"
    """Tokens on their way to the experts."""
    combine: Dtype = "bf16"
    """Expert outputs on their way back."""


class Options(Record):
    """The switches of a plan; each changes what the graph holds or how it is timed."""

    placement: PlacementMethod = "linear"
    """How experts are placed: in order, dealt out, as EPLB does (node by node, or over all GPUs), for balance alone, or
    for balance and traffic together."""
    redundant_experts: Count = 0
    """Expert slots beyond one copy of each."""
    all_to_all: AllToAll = "hierarchical"
    """flat: one row per token and expert; dedup: one per token and rank; hierarchical: one per token and node."""
    two_batch_overlap: bool = True
    """Two micro-batches at a time, one computing while the other communicates."""
    priority_scheduling: bool = True
    """Streams and links are fed in an order that lets overlapping micro-batches take turns, and bulk transfers fill the
    gaps in chunks; otherwise everything goes in the order of its arrival."""
    activation_checkpointing: bool = True
    """Training: layers recompute their activations in the backward pass; which ones, the memory plan says."""
    virtual_stages: Annotated[int, Field(gt=0, le=256)] = 1
    """Training: parts that each pipeline stage's layers are divided into and worked on in turns (interleaved 1F1B), so
    that stages wait less for each other and send more often."""
    dense_parameter_sharding: bool = False
    """Dense parameters are sharded over the attention data-parallel groups and gathered layer by layer (ZeRO-3)."""
    fully_sharded: bool = Field(default=False, exclude_if=lambda value: not value)
    """Training: all parameters, gradients and optimizer states are sharded over whoever would hold copies of them, and
    gathered layer by layer (FSDP, ZeRO-3): dense ones over attention groups and instances, experts over instances."""
    arena: bool = True
    """Activation buffers are packed into one arena by their lifetimes."""
    flash_attention: bool = True
    """Attention never writes its score matrix to memory."""
    fused_kernels: bool = True
    """Activation function, permutation and quantisation run inside the products' kernels."""
    dtypes: DtypePolicy = DtypePolicy()


class Schedule(Record):
    """What one step of a pool does, for each attention data-parallel group (`tp` GPUs, all stages)."""

    num_microbatches: Annotated[int, Field(gt=0)]
    prefill_tokens: Count
    """Prompt tokens (or training tokens) of one micro-batch."""
    prompt_tokens: Count
    """Length of the prompts those tokens belong to."""
    decode_sequences: Count
    """Sequences of one micro-batch that emit one token each."""
    context_tokens: Count
    """Mean length of those sequences so far."""
    draft_tokens: Count = Field(default=0, exclude_if=lambda value: not value)
    """Guessed tokens of each of those sequences that the step checks besides (speculative decoding)."""

    @property
    def decode_tokens(self) -> int:
        """Tokens of the decoding sequences in one micro-batch."""
        return self.decode_sequences * (1 + self.draft_tokens)

    @property
    def tokens_per_microbatch(self) -> int:
        """Tokens that run through the layers in one micro-batch."""
        return self.prefill_tokens + self.decode_tokens

    @property
    def tokens_per_step(self) -> int:
        """Tokens that run through the layers in one step."""
        return self.num_microbatches * self.tokens_per_microbatch


class Buffer(Record):
    """One activation buffer of a step: when it lives, in ops, and where in the arena it lies."""

    name: str
    size_bytes: Count
    first_op: Count
    last_op: Count
    offset_bytes: Count


class Arena(Record):
    """The activation buffers of one GPU's step, packed."""

    buffers: tuple[Buffer, ...]
    """Buffers of the layer that sets the peak."""
    peak_bytes: Count
    """Size of the arena."""
    live_bytes: Count
    """Most bytes that live at once: no packing can be smaller."""
    unplanned_peak_bytes: Count
    """Peak of a first-fit allocator that sees one request at a time."""

    @property
    def fragmentation(self) -> float:
        """Share of the arena that no buffer needs at the peak."""
        return 1 - self.live_bytes / self.peak_bytes if self.peak_bytes else 0.0


class MemoryPlan(DerivedRecord):
    """Bytes on the fullest GPU of a pool, by kind."""

    stage: Count
    """The pipeline stage of that GPU."""
    bytes_by_kind: dict[str, Count]
    capacity_bytes: Count
    checkpointed_layers: tuple[int, ...] = ()
    arena: Arena | None = None

    @computed_field
    @property
    def total_bytes(self) -> int:
        """Sum over the kinds."""
        return sum(self.bytes_by_kind.values())

    @property
    def fits(self) -> bool:
        """Whether the sum is within the device's memory."""
        return self.total_bytes <= self.capacity_bytes

    @property
    def biggest(self) -> str:
        """The kind that takes most."""
        return max(self.bytes_by_kind, key=lambda kind: (self.bytes_by_kind[kind], kind))


class Projection(Record):
    """What a plan is expected to do. Every field has an entry of the same name in `provenance`."""

    throughput_tokens_per_s: Amount
    """Prompt tokens (prefill), output tokens (decode, mixed) or trained tokens (training) over the whole cluster."""
    throughput_tokens_per_s_per_gpu: Amount
    ttft_s: Amount | None
    tpot_s: Amount | None
    step_s: Amount
    model_flops_utilization: Amount
    exposed_communication_fraction: Amount
    """Share of the step in which communication runs and nothing computes."""
    overlap_fraction: Amount
    """Share of the communication time that is hidden behind computation."""
    memory_bytes_per_gpu: dict[str, Count]
    cross_node_bytes_per_token: Amount
    """Bytes that leave a GPU's innermost domain of links in a step, for each of its tokens, whatever the transfer:
    exchanges, sums and gathers of all passes, weights that are gathered and gradients that are summed included."""
    power_w_per_gpu: Amount
    tokens_per_joule: Amount
    provenance: dict[str, Basis]


class TableCoverage(Record):
    """How much of a pool's step was priced by measured tables; the rest by the laws."""

    covered_ops: Count
    """Of the kernels and transfers of one micro-batch through all layers; norms and other passes are not counted."""
    ops: Count
    covered_seconds_share: Annotated[float, Field(ge=0, le=1)]
    """Of the seconds of all ops, passes included, one after the other, on the busiest ranks."""
    by_law: tuple[str, ...]
    """Names of the ops that the tables do not cover."""


class Pool(DerivedRecord):
    """Consecutive GPUs that run the same strategy for the same phase. An aggregated plan has one pool."""

    role: Phase
    first_rank: Count
    strategy: Strategy
    schedule: Schedule
    placement: Placement | None
    """None for a model without experts."""
    measured: tuple[MeasuredPlacement, ...] = Field(default=(), exclude_if=lambda value: not value)
    """Other methods' placements of the same slots over the same trace; none where there is no trace."""
    memory: MemoryPlan | None = None
    projection: Projection | None = None
    tables: TableCoverage | None = Field(default=None, exclude_if=lambda value: value is None)
    """None where no measured tables were given."""

    @computed_field
    @property
    def num_gpus(self) -> int:
        """GPUs of the pool."""
        return self.strategy.num_gpus

    @computed_field
    @property
    def rank_groups(self) -> dict[Axis, tuple[tuple[int, ...], ...]]:
        """The ranks that communicate along each axis of the meshes."""
        return {axis: self.strategy.groups(axis, self.first_rank) for axis in self.strategy.axes}


class RankedStrategy(Record):
    """One line of the search's result."""

    rank: Annotated[int, Field(gt=0)]
    strategy: str
    mode: Literal["aggregated", "disaggregated"]
    all_to_all: AllToAll
    two_batch_overlap: bool
    fully_sharded: bool = Field(default=False, exclude_if=lambda value: not value)
    throughput_tokens_per_s_per_gpu: Amount
    ttft_s: Amount | None
    tpot_s: Amount | None
    step_s: Amount
    simulated: bool
    """Whether a few layers of each kind were simulated; the others are timed in closed form, which takes all transfers
    for hidden that could be."""
    meets_slo: bool
    why_not: str
    """Why it is not the chosen one; empty for the chosen one."""


class ParetoPoint(Record):
    """A strategy under a load, such that no other point has more throughput per GPU at lower latency."""

    strategy: str
    load: Annotated[int, Field(gt=0)]
    """Requests in flight (decode, mixed) or tokens in flight (prefill, training)."""
    throughput_tokens_per_s_per_gpu: Amount
    latency_s: Amount
    """Time per output token; to the first token for prefill; of the step for training."""


class RejectedRule(Record):
    """A rule that kept strategies out of the ranking, with an example."""

    rule: str
    num_strategies: Count
    example: str
    reason: str


class SearchSummary(Record):
    """What the search looked at."""

    num_enumerated: Count
    num_legal: Count
    num_fitting: Count
    ranking: tuple[RankedStrategy, ...]
    pareto_front: tuple[ParetoPoint, ...]
    """Fastest answer first."""
    rejected: tuple[RejectedRule, ...]
    chosen_by: Literal["search", "user"]


class Variant(Record):
    """One of the plans that are shown side by side: baseline, original, enhanced, or an ablation."""

    name: str
    strategy: str
    changed: str
    """What sets it apart."""
    projection: Projection


class Provenance(Record):
    """What made the plan, so that the same input can give the same bytes again."""

    moiety_version: str
    calibration: str
    tables: TableSource | None = Field(default=None, exclude_if=lambda value: value is None)
    """The measured tables that it was priced with; it holds their digest, not their rows."""
    seed: int = 0


class Plan(DerivedRecord):
    """A deployment: what runs where. Decisions first; what was computed from them after."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    model: Model
    cluster: Cluster
    workload: Workload
    engine: Engine = "moiety"
    options: Options = Options()
    expert_shares: tuple[tuple[Amount, ...], ...] | None = None
    """Each expert's share of the routed tokens, [MoE layers][experts], from a dump; None: the workload's law."""
    pools: tuple[Pool, ...] = Field(min_length=1)
    projection: Projection | None = None
    comparison: tuple[Variant, ...] = ()
    search: SearchSummary | None = None
    provenance: Provenance
    calibration: Calibration | None = Field(default=None, exclude_if=lambda value: value is None)
    """The constants it was made with, where they came from a file; None: those of the catalogue."""

    @model_validator(mode="after")
    def _names_its_calibration(self) -> Self:
        if self.calibration is not None and self.calibration.name != self.provenance.calibration:
            msg = f"provenance names the calibration {self.provenance.calibration}, the plan holds "
            raise ValueError(msg + self.calibration.name)
        if self.calibration is not None and self.engine not in self.calibration.engines:
            msg = f"the calibration that the plan holds has no constants of its engine, {self.engine}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _pools_tile_ranks(self) -> Self:
        next_rank = 0
        for pool in self.pools:
            if pool.first_rank != next_rank:
                msg = f"pool {pool.role} starts at rank {pool.first_rank}, but the pools before it end at {next_rank}"
                raise ValueError(msg)
            next_rank += pool.num_gpus
        if next_rank > self.cluster.num_gpus:
            msg = f"the pools need {next_rank} GPUs, the cluster has {self.cluster.num_gpus}"
            raise ValueError(msg)
        return self

    @computed_field
    @property
    def num_gpus(self) -> int:
        """GPUs that the plan uses."""
        return sum(pool.num_gpus for pool in self.pools)

    @property
    def mode(self) -> Literal["aggregated", "disaggregated"]:
        """Whether prefill and decode share GPUs."""
        return "disaggregated" if len(self.pools) > 1 else "aggregated"
