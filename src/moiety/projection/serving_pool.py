"""Equal workers of a serving engine: how long a step takes them, and how many sequences they hold."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from moiety.calibration.scheduling import foresees_growth
from moiety.cost.memory import cache_bytes, layer_weight_bytes
from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.graph import build_step_graph
from moiety.graph.op import Collective
from moiety.plan import Schedule
from moiety.projection.admission import AT_EVERY_STEP, CHUNK_TOKENS, Admission, thrown_out
from moiety.projection.load import LoadClass
from moiety.projection.scenario import Scenario
from moiety.projection.speculation import tokens_per_step
from moiety.projection.step import time_step

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.calibration.engine_memory import EngineMemory
    from moiety.calibration.serving import EngineRelease
    from moiety.cluster.cluster import Cluster
    from moiety.graph.graph import Graph
    from moiety.model.model import Model
    from moiety.plan import Options
    from moiety.strategy.strategy import Strategy
    from moiety.workload.workload import Workload


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
    memory: EngineMemory
    draft_tokens: int = 0
    """Guesses that a decode step checks for each sequence; layers of their own make them one after the other."""
    acceptance: float = 0.0
    """Share of the guesses that are right."""
    max_sequences: int | None = None
    """Sequences that the engine lets an attention group run at a time; None: as many as the cache holds."""
    admission: Admission = AT_EVERY_STEP
    captured_prompts: bool = False
    """Steps that hold prompts replay captured graphs, as those do that decode."""
    step_tokens: int = CHUNK_TOKENS
    """Prompt tokens that a step of an attention group takes at the most."""
    waves: int | None = None
    """Requests of a run, over those in flight: it begins with as many at once. None: it has no end."""
    least_share: float = 1.0
    """The shortest prompt's and answer's share of the longest; in between they are drawn uniformly."""
    frontends: int = 1
    """Routers, each of which sends its requests to one worker after the other."""
    cold_tokens: int | None = None
    """Prompt tokens of a full step, where the run was not warmed up; None: it was."""

    @property
    def num_groups(self) -> int:
        """Attention groups of all workers: each has requests of its own."""
        return self.num_workers * self.strategy.attn_dp

    @property
    def equal_lengths(self) -> bool:
        """Whether all requests have prompts and answers of the same length."""
        return self.least_share == 1

    @property
    def arrival_density(self) -> float:
        """Prompts that come while a mean one of drawn length does, over those that come on average.

        All requests of the first wave begin together. The j-th after it to come in one place does when j answers of
        drawn lengths have ended: a width of sqrt(j) times that of one, of which the mean is 1.
        """
        if self.equal_lengths or self.waves is None or self.waves == 1:
            return 1.0
        width = (1 - self.least_share) / ((1 + self.least_share) / 2)
        return fmean(max(1 / (width * math.sqrt(wave)), 1.0) for wave in range(1, self.waves))

    @property
    def in_lockstep(self) -> bool:
        """Whether requests that begin together compute their prompts, then decode, and end together.

        So they do where nothing decodes beside prompts and all answers are equally long.
        """
        return self.equal_lengths and not self.release.mixes_prefill

    def admission_steps(self, running: float) -> float:
        """Return the steps until a mean prompt is taken up, of groups that run so many sequences each."""
        steps = self.workload.output_tokens / tokens_per_step(self.draft_tokens, self.acceptance)
        arrivals = self.arrival_density * running / steps
        whole = max(self.step_tokens // self.workload.input_tokens, 1)
        return self.admission.wait_steps(self.strategy.attn_dp, arrivals, whole)

    def step_s(self, prefill_tokens: int, sequences: int, context_tokens: int, *, expert_load: float = 1.0) -> float:
        """Return the seconds of a step with so many prompt tokens and decoding sequences in each attention group.

        Sequences that guess also take their guesses: each a pass through a layer like the last one, and the head.
        `expert_load` is the share of those tokens that comes to the experts, where not every group has them.
        """
        schedule = Schedule(
            num_microbatches=self.strategy.pp,
            prefill_tokens=-(-prefill_tokens // self.strategy.pp),
            prompt_tokens=self.workload.input_tokens if prefill_tokens else 0,
            decode_sequences=-(-sequences // self.strategy.pp),
            context_tokens=context_tokens,
            draft_tokens=self.draft_tokens if sequences else 0,
        )
        release = self.release
        step_s = (
            self._pass_s(self.model, schedule, expert_load)
            + release.step_overhead_s
            + sequences * release.sequence_overhead_s
        )
        if not schedule.draft_tokens:
            return step_s
        guess = schedule.model_copy(update={"num_microbatches": 1, "prefill_tokens": 0, "draft_tokens": 0})
        layer = self.model.model_copy(update={"layer_blocks": self.model.layer_blocks[-1:]})
        return step_s + schedule.draft_tokens * self._pass_s(layer, guess)

    def prompt_alone_s(self, tokens: int) -> float:
        """Return the seconds of a step with so many prompt tokens in one attention group of a worker and no other.

        The experts of all its ranks share them.
        """
        return self.step_s(tokens, 0, 0, expert_load=1 / self.strategy.attn_dp)

    def _pass_s(self, model: Model, schedule: Schedule, expert_load: float = 1.0) -> float:
        """Return the seconds of the kernels of a pass, and of what the engine leaves between them."""
        scenario = Scenario(model, self.cluster, self.workload, self.release.engine, self.calibration)
        strategy = (
            self.strategy if len(model.layer_blocks) >= self.strategy.pp else self.strategy.model_copy(update={"pp": 1})
        )
        load = LoadClass("all", strategy.ep, (expert_load,) * model.num_layers)
        outcome = time_step(scenario, strategy, schedule, self.options, None, timing="estimated", classes=[load])
        release = self.release
        eager = schedule.prefill_tokens and not self.captured_prompts
        return (
            outcome.step_s * release.kernel_slowdown
            + num_kernels(outcome.graph) * (release.eager_gap_s if eager else release.op_gap_s)
            + model.num_moe_layers * release.moe_layer_gap_s
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

    def capacity(self, context_tokens: int | None = None) -> float:
        """Return how many sequences of a length, or of the mean one, an attention group runs at a time.

        As many as its cache holds, and as many as may. Engines that keep a sequence's whole length free for it hold
        as many as at its last token.
        """
        work = self.workload
        mean = work.input_tokens + work.output_tokens if self.release.keeps_whole else work.decode_context_tokens
        context = context_tokens or mean
        schedule = Schedule(
            num_microbatches=1, prefill_tokens=0, prompt_tokens=0, decode_sequences=1, context_tokens=context
        )
        graph = build_step_graph(self.model, self.strategy, schedule, self.options, training=False)
        layers = Counter(self.model.layer_blocks)
        weights = sum(sum(layer_weight_bytes(graph.layers[block])) * count for block, count in layers.items())
        element = BYTES_PER_ELEMENT[self.options.dtypes.activations]
        weights += int(2 * self.model.vocab_size * self.model.hidden_size * element / self.strategy.tp)
        free = self.memory.cache_bytes(self.cluster.device.memory_bytes, weights / self.strategy.pp)
        whole = self.release.keeps_all_tokens
        each = cache_bytes(graph, range(self.model.num_layers), context, 1, keeps_all=whole) / self.strategy.pp
        slots = float("inf") if self.max_sequences is None else float(self.max_sequences)
        # a run that was measured did fit: where not one sequence would, more memory was had than is known
        return slots if each == 0 or free < each else min(free / each, slots)

    def thrown_out(self, offered: float, running: float) -> float:
        """Return the answers' times that a mean sequence waits after its first token, its cache given to others."""
        if foresees_growth(self.release.engine) or running == self.max_sequences:
            return 0.0
        return thrown_out(offered / running - 1, self.workload.input_tokens, self.workload.output_tokens)


def num_kernels(graph: Graph) -> int:
    """Return the ops of a step that run on the compute stream."""
    counts = Counter(graph.model.layer_blocks)
    parts = [(graph.layers[block], count) for block, count in counts.items()]
    parts += [(graph.embedding, 1), (graph.head, 1)]
    return sum(count * sum(not isinstance(op.work, Collective) for op in ops) for ops, count in parts)
