"""Calibration: the measured constants that turn work into time and power, each with its source and range."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, InstanceOf, model_validator

from moiety.calibration.tables import KernelTables
from moiety.dtypes import Dtype
from moiety.records import Record

Basis = Literal["measured", "fitted", "datasheet", "assumed", "computed"]
"""What a number rests on."""
Engine = Literal["moiety", "vllm", "sglang", "tensorrt-llm"]
Efficiency = Annotated[float, Field(ge=1e-6, le=1)]
Share = Annotated[float, Field(ge=1e-6, le=16)]
"""Of a device's rate; above 1 where ranks share cores and seldom all compute at once."""
Seconds = Annotated[float, Field(ge=0, le=100)]
Factor = Annotated[float, Field(ge=0, le=100)]
Bytes = Annotated[int, Field(ge=0, le=2**50)]
TileEdge = Annotated[int, Field(gt=0, le=65_536)]
Watts = Annotated[float, Field(ge=0, le=1e6)]
RooflineKind = Literal[
    "dense_gemm",
    "grouped_gemm_prefill",
    "grouped_gemm_decode",
    "attention_prefill",
    "attention_decode_gqa",
    "attention_decode_mla",
    "attention_linear",
    "memory_pass",
]


class Sourced(Record):
    """Constants with what they rest on."""

    basis: Basis
    source: str
    range: str = ""


class TileGrid(Record):
    """How a kernel cuts a product: an SM has one tile at a time, so a launch takes whole waves of tiles over the SMs.

    Of the shapes of tile that there are, the kernel takes the one that ends first.
    """

    rows: tuple[TileEdge, ...] = Field(min_length=1, max_length=8)
    columns: tuple[TileEdge, ...] = Field(min_length=1, max_length=8)
    step_bytes: Annotated[int, Field(gt=0, le=65_536)]
    """Bytes of a row of the operands that one step of a tile's loop takes."""
    step_s: Seconds
    """What a step takes however small its tile: operands arrive, and the tensor cores are waited for."""
    depth_parts: dict[Dtype, tuple[TileEdge, ...]] = Field(
        default_factory=dict[Dtype, tuple[TileEdge, ...]], exclude_if=lambda value: not value
    )
    """Into how many parts kernels of a weight format may cut K, so that few tiles use more SMs; not named: one."""
    parts_s: Seconds = Field(default=0.0, exclude_if=lambda value: not value)
    """What adding the parts up takes."""


class QueryTile(Record):
    """How attention over prompts is cut: an SM has one tile of a head's queries at a time, against all keys."""

    rows: TileEdge
    seconds: Seconds
    """What a tile takes beside its FLOPs: queries arrive, scores beyond the diagonal, the result is written."""


class Roofline(Sourced):
    """`t = overhead + (tc^p + tm^p)^(1/p)`, tc = FLOPs / (efficiency x peak), tm = bytes / (efficiency x bandwidth).

    With tiles, tc is the time of the waves of tiles instead, each tile at an SM's share of efficiency x peak.
    """

    compute_efficiency: Share
    memory_efficiency: Share
    overhead_s: Seconds
    exponent: Annotated[float, Field(ge=1, le=16)]
    row_block: Annotated[int, Field(gt=0, le=65_536)]
    """Rows that the kernel rounds each group's rows up to."""
    format_efficiency: dict[Dtype, Share] = Field(
        default_factory=dict[Dtype, Share], exclude_if=lambda value: not value
    )
    """What products with weights of a format reach of both efficiencies; of formats that are not named, all."""
    format_memory_efficiency: dict[Dtype, Share] = Field(
        default_factory=dict[Dtype, Share], exclude_if=lambda value: not value
    )
    """The same of the memory efficiency alone, where the two were told apart."""
    block_scale_memory_efficiency: Share = Field(default=1.0, exclude_if=lambda value: value == 1)
    """What products with FP8 weights that have a scale a block reach of the memory traffic of those with one scale."""
    tiles: TileGrid | None = Field(default=None, exclude_if=lambda value: value is None)
    """Of products; None: any number of SMs shares the work evenly."""
    contiguous_layout: bool = Field(default=False, exclude_if=lambda value: not value)
    """With tiles, of experts: their rows stand in one buffer, each expert's from a multiple of `row_block` on. It has
    room for whatever may be routed, and the kernel goes through all of its tiles, those without rows too."""
    row_spread: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, exclude_if=lambda value: not value)
    """With tiles: by which share of their mean the rows of a product's groups lie below or above it, at the most."""
    query_tile: QueryTile | None = Field(default=None, exclude_if=lambda value: value is None)
    """Of attention over whole prompts; None: it takes no more than its FLOPs."""


LibraryCollective = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
"""What a library of collectives is asked for."""


class Protocol(Record):
    """One way in which a library moves bytes: `start_s + step_s x steps + bytes / (share x bandwidth)`."""

    start_s: Seconds
    step_s: Seconds
    share: Efficiency
    """Of the link's bandwidth, in the largest group."""
    most_peer_bytes: Bytes | None = Field(default=None, exclude_if=lambda value: value is None)
    """Largest message to one peer that the library uses it for; None: any."""


class CollectiveProtocols(Record):
    """A library's protocols for collectives inside one domain of links; the fastest one counts.

    NCCL has three (LL, LL128, Simple): the quicker one starts, the less of the link it uses.
    """

    collectives: tuple[LibraryCollective, ...] = Field(min_length=1)
    architectures: tuple[str, ...] = Field(min_length=1)
    largest_group: Annotated[int, Field(gt=1, le=1_048_576)]
    """Of the groups that were measured; larger ones are taken to start as quickly."""
    share_exponent: Annotated[float, Field(ge=-2, le=2)]
    """A group of n reaches `share x (n / largest_group) ^ share_exponent` of the bandwidth."""
    protocols: tuple[Protocol, ...] = Field(min_length=1)
    host_s: dict[str, Seconds] = Field(default_factory=dict[str, Seconds], exclude_if=lambda value: not value)
    """Of benchmarks, by source and hardware: what their way of timing takes beside a collective, hidden
    in part behind it. Their rows are predicted with it, plans without."""

    @model_validator(mode="after")
    def _knows_every_size(self) -> Self:
        if all(each.most_peer_bytes is not None for each in self.protocols):
            msg = "one of the protocols must be used for messages of any size"
            raise ValueError(msg)
        return self


class CollectiveConstants(Sourced):
    """Ring collectives inside one domain of links, by group size; and over the network between domains."""

    group_sizes: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    latency_s: tuple[Seconds, ...]
    link_efficiency: tuple[Efficiency, ...]
    small_latency_s: Seconds
    small_bytes: Bytes
    mid_bytes: Annotated[int, Field(gt=0, le=2**50)]
    large_bytes: Annotated[int, Field(gt=0, le=2**50)]
    large_efficiency: Efficiency
    in_network_gain: Annotated[float, Field(ge=1, le=1000)]
    """How much faster a large all-reduce is where the switch of the domain reduces (NVLink SHARP)."""
    second_start: Annotated[float, Field(ge=0, le=1000)] = Field(default=0.0, exclude_if=lambda value: not value)
    """Start-up of the second of an all-reduce's two shots over that of the first, where one shot would take longer.

    0: `latency_s` has both.
    """
    network_latency_s: Seconds
    network_efficiency: Efficiency
    protocols: tuple[CollectiveProtocols, ...] = Field(default=(), exclude_if=lambda value: not value)
    """Of devices and collectives that are not named, the line above counts: `latency_s` and `link_efficiency`."""

    @model_validator(mode="after")
    def _is_a_table(self) -> Self:
        sizes = len(self.group_sizes)
        if len(self.latency_s) != sizes or len(self.link_efficiency) != sizes:
            msg = f"latency_s and link_efficiency must hold a value for each of the {sizes} group_sizes"
            raise ValueError(msg)
        if any(first >= second for first, second in pairwise(self.group_sizes)):
            msg = "group_sizes must grow"
            raise ValueError(msg)
        if self.mid_bytes >= self.large_bytes:
            msg = f"mid_bytes, {self.mid_bytes}, must be below large_bytes, {self.large_bytes}"
            raise ValueError(msg)
        return self


class ExchangeConstants(Sourced):
    """Dispatch and combine: start-up time and the share of the links' bandwidth that they reach."""

    dispatch_latency_s: Seconds
    combine_latency_s: Seconds
    combine_latency_wide_s: Seconds
    wide_ranks: Annotated[int, Field(gt=0)]
    domain_dispatch_latency_s: Seconds
    domain_combine_latency_s: Seconds
    domain_efficiency: Efficiency
    network_efficiency: Efficiency
    decode_network_efficiency: Efficiency
    communication_sms: Annotated[float, Field(ge=0)]
    """SMs that dispatch and combine take from computation in prefill and training; on CPUs the part of a rank's cores
    that overlapping leaves to others."""
    decode_communication_sms: Annotated[float, Field(ge=0)]


class EngineOverheads(Sourced):
    """What an engine adds to the kernels, and how requests wait in it.

    A step of n ops, m of its layers mixtures, that serves s sequences takes
    `kernel_slowdown x kernels + step_overhead + n x gap + m x moe_layer_gap + s x sequence_overhead`.
    """

    kernel_slowdown: Factor = 1.0
    step_overhead_s: Seconds
    op_gap_s: Seconds = 0.0
    """Between the kernels of a captured graph."""
    eager_gap_s: Seconds = 0.0
    """Between kernels that are launched one by one, as in steps that hold prompts."""
    moe_layer_gap_s: Seconds = 0.0
    sequence_overhead_s: Seconds = 0.0
    request_overhead_s: Seconds
    """Tokenizer, scheduler, transport and first sample of a request alone."""
    concurrency_overhead_s: Seconds = 0.0
    """What each request in flight at the same worker adds to that."""
    prefill_slowdown: Factor = 1.0
    """Of a request's own chunks until its first token is seen."""
    data_parallel_slowdown: Factor = 1.0
    """Times `prefill_slowdown` where attention is data parallel, whose groups wait for one another."""
    interference: Factor = 1.0
    """What those that wait see of the computation of others' prompts, as a share: before a first token and after it."""
    unshared_prefill: Factor = 0.0
    """Share of that which attention groups without a prompt of their own see where others of their worker compute one.

    All groups of a worker step together.
    """
    wait: Factor = 1.0
    """Share of the modelled wait for the running step and for the prompts ahead."""
    burst: Factor = 0.0
    """Share of a whole batch of prompts that a mean request waits for: runs start with all of them at once."""
    burst_growth: Factor = 0.0
    """What each 64 sequences add to that share in runs whose answers are equally long, and have as many requests
    whatever the concurrency."""
    convoy: Factor = 1.0
    """Prompts that come together all through a run whose answers are equally long: what started as one ends as one.

    Where nothing decodes beside prompts all do (`ServingPool.in_lockstep`), whatever this says.
    """
    cold_step_s: Seconds = 0.0
    """What a mean request of a run without warm-up waits for kernels that its first full step of prompts has made."""
    cold_fp4_step_s: Seconds = 0.0
    """The same where experts have FP4 weights."""

    def overheads(self) -> dict[str, Any]:
        """Return these fields, without those of a record that has more, with what they rest on."""
        return {name: getattr(self, name) for name in EngineOverheads.model_fields}


class EngineConstants(EngineOverheads):
    """What an engine adds to the kernels, and what it keeps of the memory."""

    reserve_bytes: Bytes
    """Memory for the driver's context, captured graphs and the libraries' workspaces."""
    unused_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """What the engine leaves free besides, of what weights and reserve leave."""

    def kept_bytes(self, memory_bytes: float, weight_bytes: float) -> float:
        """Return the bytes of a device's memory that neither weights nor cache get."""
        return self.reserve_bytes + self.unused_share * max(memory_bytes - weight_bytes - self.reserve_bytes, 0)


class PowerCurve(Record):
    """`base + compute x MFU^exponent + memory x MBU` watts at the highest clock."""

    base_w: Watts
    compute_w: Watts
    memory_w: Watts


class DevicePower(Record):
    """Power of the GPUs of some architectures, of one of `max_power_w`; others are scaled by their maximum power."""

    architectures: tuple[str, ...] = Field(min_length=1)
    max_power_w: Annotated[float, Field(ge=1e-3, le=1e6)]
    idle_w: Watts
    """With a model loaded and nothing running: what no clock lowers."""
    dense: PowerCurve
    moe: PowerCurve

    @model_validator(mode="after")
    def _is_above_idle(self) -> Self:
        least = min(self.dense.base_w, self.moe.base_w)
        if least < self.idle_w:
            msg = f"base_w, {least:g}, must not be below idle_w, {self.idle_w:g}"
            raise ValueError(msg)
        return self


class PowerConstants(Sourced):
    """Power by architecture; the first stands for those that are not named."""

    devices: tuple[DevicePower, ...] = Field(min_length=1)
    compute_exponent: Annotated[float, Field(gt=0, le=1)]
    """Of MFU: small batches compute padding, so that power grows more slowly than useful work."""
    clock_exponent: Annotated[float, Field(ge=0, le=10)]
    """Of the clock: frequency times the square of the voltage that it needs."""

    def of(self, architecture: str) -> DevicePower:
        """Return the constants of an architecture."""
        return next((each for each in self.devices if architecture in each.architectures), self.devices[0])


class Calibration(Record):
    """All constants of the cost model."""

    name: Annotated[str, Field(max_length=120, pattern=r"^[^\x00-\x1f\x7f]+$")]
    architectures: tuple[str, ...] = Field(min_length=1)
    """Architectures of the devices that the constants were found on; on others they are assumptions."""
    roofline: dict[RooflineKind, Roofline]
    collectives: CollectiveConstants
    expert_exchange: ExchangeConstants
    engines: dict[Engine, EngineConstants]
    """Of engines that are not named the serving constants hold."""
    power: PowerConstants
    tables: InstanceOf[KernelTables] | None = Field(default=None, exclude=True)
    """Measured times that count instead of the laws where they cover an op. A file of constants holds none."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        lines: tuple[RooflineKind, ...] = get_args(RooflineKind)
        missing = [f"roofline.{kind}" for kind in lines if kind not in self.roofline]
        missing += [] if "moiety" in self.engines else ["engines.moiety"]
        if missing:
            msg = f"{', '.join(missing)} missing: every kind of op and Moiety's own engine need their constants"
            raise ValueError(msg)
        return self

    def basis_on(self, architecture: str, *parts: Sourced) -> Basis:
        """Return the least certain of what `parts` rest on, on devices of `architecture`."""
        if architecture not in self.architectures:
            return "assumed"
        bases: list[Basis] = [part.basis for part in parts]
        return weakest(*bases)


_STRENGTH: tuple[Basis, ...] = ("computed", "measured", "datasheet", "fitted", "assumed")
"""From the most certain to the least: a law fitted on measurements is less certain than what it is fitted on."""


def weakest(*bases: Basis) -> Basis:
    """Return the least certain of the bases."""
    return max(bases, key=_STRENGTH.index)
