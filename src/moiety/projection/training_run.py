"""A training run of a framework whose degrees are given, in closed form: Megatron-LM's step from its parts.

`projection/phase.py` projects Moiety's own training plans layer by layer; this is what the same priced ops say of
published runs, with interleaved pipeline stages, CUDA graphs and whole-layer recomputation as those have them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from moiety.cost.price import Pricer
from moiety.dtypes import Dtype
from moiety.graph.graph import build_step_graph
from moiety.graph.model_flops import model_flops_per_token
from moiety.graph.op import Collective
from moiety.graph.sharding import expert_shards
from moiety.plan import Schedule
from moiety.projection.training_casts import Memory
from moiety.projection.training_formats import WIDE, Part, layer_prices
from moiety.projection.training_predictions import joined_rows_work, prediction_blocks, prediction_flops_per_token
from moiety.projection.training_work import LayerWork, layer_work, recomputed_work, total

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moiety.calibration.calibration import Calibration
    from moiety.calibration.training import TrainingConstants
    from moiety.cluster.cluster import Cluster
    from moiety.cost.price import OpPrice, PricedGraph
    from moiety.graph.graph import Graph
    from moiety.graph.op import Op
    from moiety.model.model import Model
    from moiety.plan import Options
    from moiety.projection.training_casts import Cast
    from moiety.projection.training_work import Captured, Recomputed
    from moiety.strategy.strategy import Strategy

_BACKWARD_SHARE = 2 / 3
"""Of a micro-batch's time; a forward pass has half as many products."""


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
    recomputed: Recomputed = "nothing"
    captured: frozenset[Captured] = frozenset()
    """What CUDA graphs hold; the rest is launched kernel by kernel."""
    overlaps_exchange: bool = False
    """Dispatch and combine run beside another micro-batch's computation."""

    predictions: int = 0
    """Tokens beyond the next that every token is trained to predict (Megatron-LM's `--mtp-num-layers`)."""

    formats: Mapping[Part, Dtype] = field(default_factory=dict["Part", "Dtype"])
    """Parts whose products are in another format than the run's own."""
    wide_layers: int = 0
    """Layers at the end whose products are in BF16 altogether."""
    casts: Mapping[Dtype, Cast] = field(default_factory=dict["Dtype", "Cast"])
    """How rows become narrow in formats that have not only a scale for each block."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all GPUs."""
        sequences = self.microbatch_sequences * self.num_microbatches * self.strategy.num_groups
        return sequences * self.sequence_tokens

    @property
    def memory(self) -> Memory:
        """What its passes over memory go by."""
        return Memory(self.cluster.device.memory_bandwidth_bytes_per_s, self.casts)

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
        predicted = 3 * self.predictions * prediction_flops_per_token(self.model, context)
        return predicted + model_flops_per_token(self.model, context_tokens=context, emitted_share=1.0, training=True)


@dataclass(frozen=True, slots=True)
class TrainingParts:
    """A step of the mean pipeline stage, in parts that the constants weigh."""

    work: LayerWork
    """Of all the step's micro-batches; what overlaps is among its `background_s`, what does not in `exchange_s`."""
    num_microbatches: int
    bubble: float
    """Time that a stage waits for others, over the time that it works."""
    update_s: float
    watts_per_tflops: float
    """The device's highest power over its peak in BF16."""

    def step_s(self, constants: TrainingConstants) -> float:
        """Return the seconds of a step.

        Products run at the clock at which the device's power lasts for them; what they draw is in proportion to it, as
        the voltage is at its floor where power is scarce. Gradients are scattered beside the last
        micro-batch's backward pass, and parameters gathered beside the next step's first forward pass; what is left of
        either is waited for. Where weights are sharded that goes on all the time, and a step is no shorter than it.
        """
        work = self.work
        clock = min(self.watts_per_tflops / constants.watts_per_tflops, 1.0)
        busy_s = (
            work.products_s / clock
            + work.passes_s * constants.pass_slowdown
            + work.accumulation_s
            + work.exchange_s
            + work.background_s * constants.exposed_share
            + (work.launches + work.paired_launches * constants.paired_launches) * constants.launch_s
        )
        busy_s = max(busy_s + work.sharding_s * constants.exposed_sharding_share, work.sharding_s)
        unit, half = busy_s / self.num_microbatches, work.gradients_s / 2
        waits = max(half - _BACKWARD_SHARE * unit, 0.0) + max(half - (1 - _BACKWARD_SHARE) * unit, 0.0)
        return (1 + self.bubble) * busy_s + self.update_s + waits


def training_parts(run: TrainingRun, calibration: Calibration) -> TrainingParts:
    """Return what a step of `run` is made of; its stages wait (p - 1) / v units of m for each other.

    The optimizer's state is divided over the copies (`--use-distributed-optimizer`), sharded weights have it so.
    """
    graphs = priced_graphs(run, calibration)
    priced = next(iter(graphs.values()))
    stages, microbatches, device = run.strategy.pp, run.num_microbatches, run.cluster.device
    ends = layer_work((*priced.embedding, *priced.head), None, run.strategy, (), run.memory)
    layers = [
        _block_work(run, graphs, block, dtype).times(count * microbatches / stages)
        for (block, dtype), count in Counter(_layers(run)).items()
    ]
    beyond = _predictions_work(run, graphs, calibration).times(microbatches / stages)
    work = total((*layers, ends.times(microbatches / stages), beyond, _handed_over(run, priced.boundary)))
    ending = [price for price in priced.update if price.op.is_communication]
    work = total((work, layer_work(ending, None, run.strategy, (), run.memory)))
    update_s = sum(price.seconds for price in priced.update if not price.op.is_communication)
    return TrainingParts(
        work=_split(work, run.overlaps_exchange),
        num_microbatches=microbatches,
        bubble=(stages - 1) / (run.virtual_stages * microbatches),
        update_s=update_s / (run.strategy.instances if expert_shards(priced.graph.layout) == 1 else 1),
        watts_per_tflops=device.max_power_w / (device.peak("bf16") / 1e12),
    )


def priced_graphs(run: TrainingRun, calibration: Calibration) -> dict[Dtype, PricedGraph]:
    """Return the run's step priced in its own format, which comes first, and in each other that it uses."""
    own = run.options.dtypes.weights
    used = dict.fromkeys((own, *run.formats.values(), *((WIDE,) if run.wide_layers else ())))
    priced: dict[Dtype, PricedGraph] = {}
    for dtype in used:
        dtypes = run.options.dtypes.model_copy(update={"weights": dtype, "experts": dtype})
        options = run.options.model_copy(update={"dtypes": dtypes})
        graph = _as_sent(build_step_graph(run.model, run.strategy, run.schedule, options, training=True))
        priced[dtype] = Pricer(graph, run.cluster, calibration).priced_graph()
    return priced


def _as_sent(graph: Graph) -> Graph:
    """Return a graph with Megatron-LM's exchange where ranks share experts and each token's every expert gets a row.

    Its all-to-all sends a row to one of the ranks that share an expert; they gather each other's, and scatter their
    sums on the way back (`MoEAlltoAllTokenDispatcher`).
    """
    layout = graph.layout
    if layout.strategy.etp == 1 or layout.options.all_to_all != "flat":
        return graph
    layers, backward = (
        tuple(tuple(map(_gathered, ops)) for ops in passes) for passes in (graph.layers, graph.backward)
    )
    return replace(graph, layers=layers, backward=backward)


def _gathered(op: Op) -> Op:
    work = op.work
    exchanges = isinstance(work, Collective) and work.kind in {"dispatch", "combine"}
    return replace(op, work=replace(work, method="gathered")) if exchanges else op


def _layers(run: TrainingRun) -> list[tuple[int, Dtype]]:
    """Return (kind, format) of every layer."""
    own, narrow = run.options.dtypes.weights, run.model.num_layers - run.wide_layers
    return [(kind, own if index < narrow else WIDE) for index, kind in enumerate(run.model.layer_blocks)]


def _block_work(run: TrainingRun, graphs: Mapping[Dtype, PricedGraph], block: int, dtype: Dtype) -> LayerWork:
    """Return a layer's work in `dtype`; layers in the run's own format have parts in others."""
    kind = run.model.blocks[block]
    formats = run.formats if dtype == run.options.dtypes.weights else dict[Part, Dtype]()
    forward, backward = layer_prices(graphs, block, formats, dtype)
    prices = (*forward, *recomputed_work(forward, kind, run.recomputed), *backward)
    return layer_work(prices, kind, run.strategy, run.captured, run.memory)


def _predictions_work(run: TrainingRun, graphs: Mapping[Dtype, PricedGraph], calibration: Calibration) -> LayerWork:
    """Return a micro-batch's work for tokens beyond the next: rows joined, layers, and the head once more for each."""
    if not run.predictions:
        return LayerWork()
    own = run.options.dtypes.weights
    dtype = run.formats.get("predictions", own)
    parts = [_block_work(run, graphs, kind, dtype) for kind in prediction_blocks(run.model)]
    parts.append(layer_work(graphs[own].head, None, run.strategy, (), run.memory))
    parts.append(joined_rows_work(run.model, graphs[dtype].graph.layout, run.cluster, calibration))
    return total(parts).times(run.predictions)


def _handed_over(run: TrainingRun, boundary: tuple[OpPrice, ...]) -> LayerWork:
    """Return what stages send each other: there and back for each of a stage's parts, beside work of others."""
    seconds = 2 * run.num_microbatches * run.virtual_stages * sum(price.seconds for price in boundary)
    return LayerWork(background_s=seconds) if run.virtual_stages > 1 else LayerWork(exchange_s=seconds)


def _split(work: LayerWork, overlaps_exchange: bool) -> LayerWork:  # noqa: FBT001 - from a field
    """Return the work with its exchanges where they belong, in the background or not.

    In the background, one micro-batch's forward pass and another's backward pass are cut into nodes that the host runs
    in turns, each with events between two streams (Megatron-LM's `combined_1f1b` and `ScheduleNode`).
    """
    if not overlaps_exchange:
        return work
    beside = work.background_s + work.exchange_s
    return replace(work, exchange_s=0.0, background_s=beside, launches=0.0, paired_launches=work.launches)
