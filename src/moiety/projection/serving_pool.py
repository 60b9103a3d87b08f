"""Equal workers of a serving engine: how long a step takes them, and how many sequences they hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.calibration.serving import MEMORY_SHARE, RESERVE_BYTES
from moiety.cost.memory import cache_bytes, layer_weight_bytes
from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.graph import build_step_graph
from moiety.graph.op import Collective
from moiety.model.feed_forward import MoeFeedForward
from moiety.plan import Schedule
from moiety.projection.scenario import Scenario
from moiety.projection.step import time_step

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.calibration.serving import EngineRelease
    from moiety.cluster.cluster import Cluster
    from moiety.graph.graph import Graph
    from moiety.model.model import Model
    from moiety.plan import Options
    from moiety.strategy.strategy import Strategy
    from moiety.workload.workload import Workload

_LEAST_POOL = 0.03
"""Share of the memory that a cache needs at least to be believed: a run that was measured did fit."""


@dataclass(frozen=True, slots=True)
class ServingPool:
    """`num_workers` workers with the same strategy, each with requests of its own."""

    model: Model
    cluster: Cluster
    strategy: Strategy
    options: Options
    num_workers: int
    calibration: Calibration
    release: EngineRelease
    workload: Workload

    @property
    def num_groups(self) -> int:
        """Attention groups of all workers: each has requests of its own."""
        return self.num_workers * self.strategy.attn_dp

    def step_s(self, prefill_tokens: int, sequences: int, context_tokens: int) -> float:
        """Return the seconds of a step with so many prompt tokens and decoding sequences in each attention group."""
        schedule = Schedule(
            num_microbatches=self.strategy.pp,
            prefill_tokens=-(-prefill_tokens // self.strategy.pp),
            prompt_tokens=self.workload.input_tokens if prefill_tokens else 0,
            decode_sequences=-(-sequences // self.strategy.pp),
            context_tokens=context_tokens,
        )
        scenario = Scenario(self.model, self.cluster, self.workload, self.release.engine, self.calibration)
        outcome = time_step(scenario, self.strategy, schedule, self.options, None, timing="estimated")
        return outcome.step_s * self.release.kernel_slowdown + self._added_s(
            outcome.graph, sequences, eager=prefill_tokens > 0
        )

    def _added_s(self, graph: Graph, sequences: int, *, eager: bool) -> float:
        release, blocks = self.release, Counter(self.model.layer_blocks)
        ops = num_kernels(graph)
        mixtures = sum(n for b, n in blocks.items() if isinstance(self.model.blocks[b].feed_forward, MoeFeedForward))
        return (
            release.step_overhead_s
            + ops * (release.eager_gap_s if eager else release.op_gap_s)
            + mixtures * release.moe_layer_gap_s
            + sequences * release.sequence_overhead_s
        )

    def decode_bytes(self, sequences: int, context_tokens: int) -> float:
        """Return the bytes that the memory of a GPU moves in a decode step."""
        schedule = Schedule(
            num_microbatches=1,
            prefill_tokens=0,
            prompt_tokens=0,
            decode_sequences=sequences,
            context_tokens=context_tokens,
        )
        graph = build_step_graph(self.model, self.strategy, schedule, self.options, training=False)
        layers = Counter(self.model.layer_blocks)
        total = sum(count * sum(op.memory_bytes for op in graph.layers[block]) for block, count in layers.items())
        return total + sum(op.memory_bytes for op in (*graph.embedding, *graph.head))

    def capacity(self) -> float:
        """Return how many sequences of mean length the cache of an attention group holds."""
        work = self.workload
        context = work.decode_context_tokens
        schedule = Schedule(
            num_microbatches=1, prefill_tokens=0, prompt_tokens=0, decode_sequences=1, context_tokens=context
        )
        graph = build_step_graph(self.model, self.strategy, schedule, self.options, training=False)
        layers = Counter(self.model.layer_blocks)
        weights = sum(sum(layer_weight_bytes(graph.layers[block])) * count for block, count in layers.items())
        element = BYTES_PER_ELEMENT[self.options.dtypes.activations]
        weights += int(2 * self.model.vocab_size * self.model.hidden_size * element / self.strategy.tp)
        memory = self.cluster.device.memory_bytes
        free = memory * MEMORY_SHARE - weights / self.strategy.pp - RESERVE_BYTES
        each = cache_bytes(graph, range(self.model.num_layers), context, 1) / self.strategy.pp
        if each == 0 or free < _LEAST_POOL * memory:
            return float("inf")
        return max(free / each, 1.0)


def num_kernels(graph: Graph) -> int:
    """Return the ops of a step that run on the compute stream."""
    counts = Counter(graph.model.layer_blocks)
    parts = [(graph.layers[block], count) for block, count in counts.items()]
    parts += [(graph.embedding, 1), (graph.head, 1)]
    return sum(count * sum(not isinstance(op.work, Collective) for op in ops) for ops, count in parts)
