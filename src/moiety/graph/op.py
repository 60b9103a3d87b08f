"""Op: one operator of a step on one GPU, with its work and its tensors; no time in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from moiety.dtypes import BYTES_PER_ELEMENT, ROW_BYTES_PER_ELEMENT, Dtype

if TYPE_CHECKING:
    from moiety.plan import AllToAll
    from moiety.strategy.strategy import Axis

    ExchangeMethod = AllToAll | Literal["gathered"]
    """How tokens reach experts: as a plan says it, or `gathered`, as Megatron-LM sends them."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor by its shape, as one GPU holds it."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    has_row_scales: bool = False
    """Whether its rows are quantised one by one, as tokens on the wire are."""
    matrices: tuple[int, ...] = ()
    """Rows of each matrix that it consists of, where one product is over several: queries', keys' and values'."""

    @property
    def size_bytes(self) -> int:
        """Bytes in memory."""
        element = (ROW_BYTES_PER_ELEMENT if self.has_row_scales else BYTES_PER_ELEMENT)[self.dtype]
        return math.ceil(math.prod(self.shape) * element)

    def __str__(self) -> str:
        """Return e.g. `[16479, 8192] bf16`."""
        return f"[{', '.join(map(str, self.shape))}] {self.dtype}"


@dataclass(frozen=True, slots=True)
class Gemm:
    """A matrix product [m, k] x [k, n], or `groups` of them that share m rows between them (experts)."""

    m: float
    n: int
    k: int
    weight_dtype: Dtype
    activation_dtype: Dtype
    groups: float = 1
    """Weight matrices that are read."""
    experts: bool = False
    """The rows are an equal share of the routed tokens; a rank's load scales them."""
    times: float = 1
    """How often it runs (the backward pass runs it twice: for inputs and for weights)."""
    slots: int = 1
    """Weight matrices that the GPU holds, read or not."""
    block_scales: bool = False
    """FP8 weights have a scale for every block of them."""

    @property
    def flops(self) -> float:
        """Multiply-adds count as two."""
        return 2.0 * self.m * self.n * self.k * self.times

    @property
    def weight_bytes(self) -> float:
        """Bytes of weights that are read."""
        return self.groups * self.n * self.k * BYTES_PER_ELEMENT[self.weight_dtype] * self.times

    @property
    def activation_bytes(self) -> float:
        """Bytes of activations that are read and written."""
        return self.m * (self.k + self.n) * BYTES_PER_ELEMENT[self.activation_dtype] * self.times

    @property
    def bytes(self) -> float:
        """Bytes of memory traffic."""
        return self.weight_bytes + self.activation_bytes


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """The sizes of one attention kernel on one GPU: grouped queries, or (`latent_dim`) heads that share a latent."""

    sequences: float
    tokens: int
    """New tokens of each sequence (prefill), or tokens in its cache (decode)."""
    heads: int
    kv_heads: int
    head_dim: int
    """Of queries and keys, before a latent takes up their projection."""
    value_dim: int
    latent_dim: int
    """Elements that the cache holds for a token in place of keys and values; 0: it holds those."""
    window: int
    """Tokens that a token sees at most; 0: all before it."""
    cache_dtype: Dtype


@dataclass(frozen=True, slots=True)
class AttentionCore:
    """Scores, softmax and weighted sum; `prefill` is causal over new tokens, `decode` reads the cache."""

    phase: Literal["prefill", "decode"]
    variant: Literal["gqa", "mla", "linear"]
    flops: float
    bytes: float
    dtype: Dtype
    shape: AttentionShape | None = None
    """Where one kernel with a shape does it: whole prompts or cached ones, no score matrix in memory."""


@dataclass(frozen=True, slots=True)
class MemoryPass:
    """Work that only moves bytes: norms, activation functions, permutations, embedding rows, optimizer updates."""

    bytes: float
    flops: float = 0.0
    experts: bool = False


CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "send", "dispatch", "combine"]


@dataclass(frozen=True, slots=True)
class Collective:
    """A transfer inside the groups of one mesh axis.

    `payload_bytes` is the size of the full tensor on each rank: the reduced one (all-reduce), the gathered one
    (all-gather), the one before scattering (reduce-scatter), the message (send). For dispatch and combine it is the
    bytes of one row, and `tokens` says how many tokens each attention data-parallel group routes.
    """

    kind: CollectiveKind
    axis: Axis
    payload_bytes: float
    bulk: bool = False
    """Background transfer that may wait: prefetches of sharded parameters, gradients."""
    tokens: float = 0.0
    method: ExchangeMethod = "flat"


Work = Gemm | AttentionCore | MemoryPass | Collective


@dataclass(frozen=True, slots=True)
class Op:
    """One operator. `inputs` names the ops of the same layer it waits for; `input` is what the layer gets."""

    name: str
    work: Work
    inputs: tuple[str, ...]
    output: Tensor | None = None
    weights: tuple[Tensor, ...] = ()
    prefetch: bool = False
    """Depends on nothing of its own layer; starts when the layer before it starts."""

    @property
    def is_communication(self) -> bool:
        """Whether it runs on links instead of the compute stream."""
        return isinstance(self.work, Collective)

    @property
    def flops(self) -> float:
        """Floating-point operations on this GPU."""
        return 0.0 if isinstance(self.work, Collective) else self.work.flops

    @property
    def memory_bytes(self) -> float:
        """Bytes that this GPU's memory reads and writes for it."""
        return 0.0 if isinstance(self.work, Collective) else self.work.bytes
