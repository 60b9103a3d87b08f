"""Equal workers of a serving engine: how long a step takes them, and how many sequences they hold."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from moiety.calibration.scheduling import scheduling
from moiety.cost.memory import cache_bytes, layer_weight_bytes
from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.graph import build_step_graph
from moiety.plan import Schedule
from moiety.projection.admission import AT_EVERY_STEP, CHUNK_TOKENS, Admission, thrown_out
from moiety.projection.engine_step import engine_pass_s, engine_step_s, kernels_period_s
from moiety.projection.load import LoadClass
from moiety.projection.schedule import microbatches_of
from moiety.projection.speculation import tokens_per_step
from moiety.projection.step import time_step

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration, Engine, EngineOverheads
    from moiety.calibration.engine_memory import EngineMemory
    from moiety.calibration.scheduling import Scheduling
    from moiety.cluster.cluster import Cluster
    from moiety.model.model import Model
    from moiety.placement.placement import Placement
    from moiety.plan import Options
    from moiety.projection.scenario import Scenario
    from moiety.projection.step import StepOutcome, Timing
    from moiety.strategy.strategy import Strategy
    from moiety.workload.workload import Workload


@dataclass(frozen=True, slots=True)
class ServingPool:
    """The workers of a strategy, its instances, each with requests of its own."""

    scenario: Scenario
    strategy: Strategy
    options: Options
    overheads: EngineOverheads
    """What the engine adds to the scenario's kernels, and how requests wait in it."""
    scheduling: Scheduling
    memory: EngineMemory | None = None
    """None: what is in flight is known to fit."""
    placement: Placement | None = None
    """Where the experts live; None: all of them are loaded alike."""
    first_rank: int = 0
    timing: Timing = "estimated"
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
    frontends: int = 1
    """Routers, each of which sends its requests to one worker after the other."""
    cold_tokens: int | None = None
    """Prompt tokens of a full step, where the run was not warmed up; None: it was."""

    @property
    def model(self) -> Model:
        """The model that is served."""
        return self.scenario.model

    @property
    def cluster(self) -> Cluster:
        """What it runs on."""
        return self.scenario.cluster

    @property
    def workload(self) -> Workload:
        """Its requests."""
        return self.scenario.workload

    @property
    def calibration(self) -> Calibration:
        """The constants of kernels and links."""
        return self.scenario.calibration

    @property
    def engine(self) -> Engine:
        """The engine that serves."""
        return self.scenario.engine

    @property
    def num_workers(self) -> int:
        """Copies of the model, each with requests of its own."""
        return self.strategy.instances

    @property
    def num_groups(self) -> int:
        """Attention groups of all workers: each has requests of its own."""
        return self.strategy.num_groups

    @property
    def in_closed_loop(self) -> bool:
        """Whether a request comes when another ends; otherwise they arrive at the workload's rate."""
        return self.workload.request_rate_per_s is None

    @property
    def equal_lengths(self) -> bool:
        """Whether all requests have prompts and answers of the same length."""
        return self.workload.shortest_share == 1

    @property
    def arrival_density(self) -> float:
        """Prompts that come while a mean one of drawn length does, over those that come on average.

        All requests of the first wave begin together. The j-th after it to come in one place does when j answers of
        drawn lengths have ended: a width of sqrt(j) times that of one, of which the mean is 1.
        """
        if self.equal_lengths or self.waves is None or self.waves == 1:
            return 1.0
        shortest = self.workload.shortest_share
        width = (1 - shortest) / ((1 + shortest) / 2)
        return fmean(max(1 / (width * math.sqrt(wave)), 1.0) for wave in range(1, self.waves))

    @property
    def in_lockstep(self) -> bool:
        """Whether requests that begin together compute their prompts, then decode, and end together.

        So they do where nothing decodes beside prompts and all answers are equally long.
        """
        return self.in_closed_loop and self.equal_lengths and not self.scheduling.mixes_prefill

    @property
    def prompt_slowdown(self) -> float:
        """What a request's own chunks take until its first token is seen, over their steps."""
        engine = self.overheads
        return engine.prefill_slowdown * (engine.data_parallel_slowdown if self.strategy.attn_dp > 1 else 1.0)

    @property
    def pipelines_prompts(self) -> bool:
        """Whether a step with prompts begins while the one before it is still in the stages behind."""
        return self.strategy.pp > 1 and self.scheduling.mixes_prefill

    def admission_steps(self, running: float) -> float:
        """Return the steps until a mean prompt is taken up, of groups that run so many sequences each."""
        steps = self.workload.output_tokens / tokens_per_step(self.draft_tokens, self.acceptance)
        arrivals = self.arrival_density * running / steps
        whole = max(self.step_tokens // self.workload.input_tokens, 1)
        return self.admission.wait_steps(self.strategy.attn_dp, arrivals, whole)

    def step_s(
        self,
        prefill_tokens: int,
        sequences: int,
        context_tokens: int,
        *,
        expert_load: float = 1.0,
        drained: bool | None = None,
    ) -> float:
        """Return the seconds of a step with so many prompt tokens and decoding sequences in each attention group.

        Sequences that guess also take their guesses: each a pass through a layer like the last one, and the head.
        `expert_load` is the share of those tokens that comes to the experts, where not every group has them. `drained`:
        until the last of its micro-batches is through all stages, not until the next step can begin; None: where it
        decodes nothing.
        """
        drained = not sequences if drained is None else drained
        outcome = self._step(prefill_tokens, sequences, context_tokens, expert_load)
        schedule = outcome.graph.layout.schedule
        step_s = engine_step_s(
            self.overheads,
            outcome.graph,
            outcome.step_s if drained else kernels_period_s(outcome),
            sequences,
            captured_prompts=self.captured_prompts,
        )
        if not schedule.draft_tokens:
            return step_s
        guess = schedule.model_copy(update={"num_microbatches": 1, "prefill_tokens": 0, "draft_tokens": 0})
        layer = replace(
            self.scenario, model=self.model.model_copy(update={"layer_blocks": self.model.layer_blocks[-1:]})
        )
        guessed = self._timed(layer, self.strategy.model_copy(update={"pp": 1}), guess, 1.0)
        return step_s + schedule.draft_tokens * engine_pass_s(self.overheads, guessed.graph, guessed.step_s)

    def prompt_alone_s(self, tokens: int) -> float:
        """Return the seconds of a step with so many prompt tokens in one attention group of a worker and no other.

        The experts of all its ranks share them.
        """
        return self.step_s(tokens, 0, 0, expert_load=1 / self.strategy.attn_dp)

    def drain_s(self, chunk: int, sequences: int) -> float:
        """Return the seconds from when the next step can begin until a step's chunk is through all stages."""
        if not self.pipelines_prompts:
            return 0.0
        outcome = self._step(chunk, sequences, self.workload.decode_context_tokens, 1.0)
        return self.overheads.kernel_slowdown * (outcome.step_s - kernels_period_s(outcome))

    def _step(self, prefill_tokens: int, sequences: int, context_tokens: int, expert_load: float) -> StepOutcome:
        """Return a step that is cut into micro-batches as plans are."""
        microbatches = microbatches_of(self.strategy, self.options, max(sequences, prefill_tokens))
        schedule = Schedule(
            num_microbatches=microbatches,
            prefill_tokens=-(-prefill_tokens // microbatches),
            prompt_tokens=self.workload.input_tokens if prefill_tokens else 0,
            decode_sequences=-(-sequences // microbatches),
            context_tokens=context_tokens,
            draft_tokens=self.draft_tokens if sequences else 0,
        )
        return self._timed(self.scenario, self.strategy, schedule, expert_load)

    def _timed(self, scenario: Scenario, strategy: Strategy, schedule: Schedule, expert_load: float) -> StepOutcome:
        """Return a step; experts have their placement's load, or `expert_load` all of them."""
        placed = self.placement if expert_load == 1 else None
        classes = None if placed else [LoadClass("all", strategy.ep, (expert_load,) * scenario.model.num_layers)]
        return time_step(
            scenario,
            strategy,
            schedule,
            self.options,
            placed,
            first_rank=self.first_rank,
            timing=self.timing,
            classes=classes,
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
        slots = float("inf") if self.max_sequences is None else float(self.max_sequences)
        if self.memory is None:
            return slots
        work = self.workload
        mean = work.input_tokens + work.output_tokens if self.scheduling.keeps_whole else work.decode_context_tokens
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
        whole = self.scheduling.keeps_all_tokens
        each = cache_bytes(graph, range(self.model.num_layers), context, 1, keeps_all=whole) / self.strategy.pp
        # a run that was measured did fit: where not one sequence would, more memory was had than is known
        return slots if each == 0 or free < each else min(free / each, slots)

    def thrown_out(self, offered: float, running: float) -> float:
        """Return the answers' times that a mean sequence waits after its first token, its cache given to others."""
        if self.scheduling.foresees_growth or running == self.max_sequences:
            return 0.0
        return thrown_out(offered / running - 1, self.workload.input_tokens, self.workload.output_tokens)


def plan_pool(  # noqa: PLR0913 - what a plan says of a pool
    scenario: Scenario,
    strategy: Strategy,
    options: Options,
    placement: Placement | None,
    first_rank: int = 0,
    *,
    timing: Timing = "estimated",
    memory: EngineMemory | None = None,
    step_tokens: int = CHUNK_TOKENS,
) -> ServingPool:
    """Return a pool of a plan, whose engine schedules by its defaults.

    Its steps are many: where each layer of the plan's own is simulated, of theirs a few of each kind are.
    """
    return ServingPool(
        scenario=scenario,
        strategy=strategy,
        options=options,
        overheads=scenario.overheads,
        scheduling=scheduling(scenario.engine),
        memory=memory,
        placement=placement,
        first_rank=first_rank,
        timing="folded" if timing == "simulated" else timing,
        step_tokens=step_tokens,
    )
