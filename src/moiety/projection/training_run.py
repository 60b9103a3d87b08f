"""A training run of a framework whose degrees are given, in closed form: Megatron-LM's step from its parts.

`projection/phase.py` projects Moiety's own training plans layer by layer; this is what the same priced ops say of
published runs, with interleaved pipeline stages and whole-layer recomputation as those have them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.cost.price import Pricer
from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.graph import build_step_graph
from moiety.graph.model_flops import model_flops_per_token
from moiety.graph.op import Collective, Gemm
from moiety.plan import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moiety.calibration.calibration import Calibration
    from moiety.calibration.training import TrainingConstants
    from moiety.cluster.cluster import Cluster
    from moiety.cost.price import OpPrice
    from moiety.model.model import Model
    from moiety.plan import Options
    from moiety.strategy.strategy import Strategy

_CAST_COPIES = 2
"""A narrow operand is written twice, by row for one product and by column for the other (Transformer Engine)."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A training deployment, every decision of it taken."""

    model: Model
    cluster: Cluster
    strategy: Strategy
    options: Options
    sequence_tokens: int
    microbatch_sequences: int
    num_microbatches: int
    """Of each data-parallel group and step."""
    virtual_stages: int = 1
    """Parts that every pipeline stage's layers are divided into, in turns (interleaved 1F1B, Narayanan et al. 2021)."""
    recomputes: bool = False
    """Every layer's forward pass runs again before its backward pass."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all GPUs."""
        sequences = self.microbatch_sequences * self.num_microbatches * self.strategy.attn_dp * self.strategy.instances
        return sequences * self.sequence_tokens

    @property
    def schedule(self) -> Schedule:
        """What one step of a data-parallel group does."""
        return Schedule(
            num_microbatches=self.num_microbatches,
            prefill_tokens=self.microbatch_sequences * self.sequence_tokens,
            prompt_tokens=self.sequence_tokens,
            decode_sequences=0,
            context_tokens=0,
        )

    @property
    def flops_per_token(self) -> float:
        """Model FLOPs of a trained token; recomputation does not count."""
        context = (self.sequence_tokens + 1) / 2
        return model_flops_per_token(self.model, context_tokens=context, emitted_share=1.0, training=True)


@dataclass(frozen=True, slots=True)
class TrainingParts:
    """A step of the mean pipeline stage, in parts that the constants weigh; the pipeline's bubble is in each."""

    work_s: float
    """Kernels, casts to narrow formats, exchanges and tensor-parallel sums, the optimizer and the stages' hand-over."""
    dense_layers: float
    """Passes of a micro-batch through a dense layer, forward and backward as one."""
    moe_layers: float
    gradients_s: float
    """Gradient reductions at the rate of an all-reduce."""

    def step_s(self, constants: TrainingConstants) -> float:
        """Return the seconds of a step."""
        return (
            self.work_s
            + self.dense_layers * constants.dense_layer_s
            + self.moe_layers * constants.moe_layer_s
            + self.gradients_s * constants.gradient_slowdown
        )


def training_parts(run: TrainingRun, calibration: Calibration) -> TrainingParts:
    """Return what a step of `run` is made of.

    Nothing overlaps but the stages of the pipeline, which wait (p - 1) / v units of m: transfers that a framework hides
    are hidden behind kernels that they slow down.
    """
    graph = build_step_graph(run.model, run.strategy, run.schedule, run.options, training=True)
    priced = Pricer(graph, run.cluster, calibration).priced_graph()
    stages, microbatches = run.strategy.pp, run.num_microbatches
    memory_rate = run.cluster.device.memory_bandwidth_bytes_per_s
    work = gradients = dense = moe = 0.0
    for block, count in Counter(run.model.layer_blocks).items():
        passes = count / stages * microbatches
        forward, backward = priced.layers[block], priced.backward[block]
        work += passes * (1 + run.recomputes) * (_seconds(forward) + _cast_bytes(forward) / memory_rate)
        work += passes * (_seconds(backward) + _cast_bytes(backward) / memory_rate)
        gradients += passes * sum(price.seconds for price in backward if _is_bulk(price))
        if run.model.blocks[block].feed_forward.kind == "moe":
            moe += passes
        else:
            dense += passes
    work += microbatches / stages * (_seconds(priced.embedding) + _seconds(priced.head))
    bubble = 1 + (stages - 1) / (run.virtual_stages * microbatches)
    handed_over = 2 * microbatches * run.virtual_stages * _seconds(priced.boundary) if stages > 1 else 0.0
    return TrainingParts(
        work_s=bubble * work + handed_over + _seconds(priced.update),
        dense_layers=bubble * dense,
        moe_layers=bubble * moe,
        gradients_s=gradients,
    )


def _seconds(prices: Iterable[OpPrice]) -> float:
    return sum(price.seconds for price in prices if not _is_bulk(price))


def _is_bulk(price: OpPrice) -> bool:
    work = price.op.work
    return isinstance(work, Collective) and work.bulk


def _cast_bytes(prices: Iterable[OpPrice]) -> float:
    """Return the bytes that operands of narrow products move while they are cast: read wide, written narrow.

    Forward the rows that go in, backward the gradients of those that came out.
    """
    moved = 0.0
    for price in prices:
        work = price.op.work
        if isinstance(work, Gemm) and BYTES_PER_ELEMENT[work.weight_dtype] < BYTES_PER_ELEMENT[work.activation_dtype]:
            width = work.n if price.op.name.endswith(".backward") else work.k
            narrow = _CAST_COPIES * BYTES_PER_ELEMENT[work.weight_dtype]
            moved += work.m * width * (BYTES_PER_ELEMENT[work.activation_dtype] + narrow)
    return moved
