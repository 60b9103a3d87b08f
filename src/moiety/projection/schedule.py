"""Schedules: how a workload can be cut into steps and micro-batches for a strategy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moiety.plan import Schedule
from moiety.projection.admission import PROMPT_TOKENS

if TYPE_CHECKING:
    from moiety.plan import Options, Phase
    from moiety.strategy.strategy import Strategy
    from moiety.workload.workload import Workload

_LONGEST_MICROBATCH = 131_072


def schedules(
    workload: Workload, phase: Phase, strategy: Strategy, options: Options, concurrency: int | None = None
) -> list[Schedule]:
    """Return the schedules worth judging, fewest micro-batches first; empty where groups would stay without work.

    Two-batch overlap needs two micro-batches, a pipeline as many as it has stages or more. `concurrency` overrides the
    workload's (what an arrival rate leads to, or a pool's share).
    """
    groups = strategy.num_groups
    if phase in {"prefill", "training"} and workload.kind in {"prefill", "training"}:
        return _batches(workload, phase, workload.tokens_per_batch / groups, strategy, options)
    if phase == "prefill":
        # a pool of a serving deployment: prompts one batch at a time
        prompts = max(PROMPT_TOKENS // workload.input_tokens, 1)
        return _batches(workload, phase, prompts * workload.input_tokens, strategy, options)
    in_flight = concurrency if concurrency is not None else workload.concurrency
    assert in_flight is not None, "an arrival rate is turned into a concurrency before it is scheduled"
    if in_flight < groups:
        return []
    sequences = math.ceil(in_flight / groups)
    count = microbatches_of(strategy, options, sequences)
    if count > sequences:
        return []
    decoded = math.ceil(sequences / count)
    prompt = decoded * workload.input_tokens / workload.output_tokens if phase == "mixed" else 0
    return [
        Schedule(
            num_microbatches=count,
            prefill_tokens=math.ceil(prompt),
            prompt_tokens=workload.input_tokens if prompt else 0,
            decode_sequences=decoded,
            context_tokens=workload.decode_context_tokens,
        )
    ]


def microbatches_of(strategy: Strategy, options: Options, parts: int) -> int:
    """Return the micro-batches of a serving step with so many sequences or tokens: one a stage, or two that overlap."""
    if strategy.pp > 1:
        return strategy.pp
    return 2 if options.two_batch_overlap and parts > 1 else 1


def _batches(workload: Workload, phase: Phase, tokens: float, strategy: Strategy, options: Options) -> list[Schedule]:
    """Return schedules for `tokens` prompt or training tokens a group and step."""
    smallest = workload.input_tokens if phase == "training" else min(workload.input_tokens, 512)
    if tokens < smallest:
        return []
    least = 2 if options.two_batch_overlap else 1
    least = max(least, math.ceil(tokens / _LONGEST_MICROBATCH), 1, strategy.pp)
    counts = dict.fromkeys(least * factor for factor in (1, 2, 4))
    found: list[Schedule] = []
    for count in counts:
        size = math.ceil(tokens / count)
        if size < smallest and count > 1:
            break
        found.append(
            Schedule(
                num_microbatches=count,
                prefill_tokens=size,
                prompt_tokens=workload.input_tokens,
                decode_sequences=0,
                context_tokens=0,
            )
        )
    return found
