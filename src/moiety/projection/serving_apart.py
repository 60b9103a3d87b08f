"""Latencies where prompts are computed by one pool of workers and handed over to another that decodes.

A closed loop with two places to wait, a prefill worker and one of the sequences that the decoding workers let run, and
with a start at which all requests come at once. How these hide one another, no formula that we know says; a run is
played (`sim/closed_loop.py`), with times of steps in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.cost.memory import cache_bytes
from moiety.graph.graph import build_step_graph
from moiety.plan import Schedule
from moiety.projection.queue import queue_wait_s
from moiety.projection.serving import GroupLoad, ServingLatency, decode_token_s, group_load
from moiety.sim.closed_loop import PlayedRun, PromptSteps, TwoStageRun, played

if TYPE_CHECKING:
    from moiety.calibration.calibration import Engine
    from moiety.calibration.serving import PrefillApart
    from moiety.projection.serving_pool import ServingPool

_WAVES = 10
"""Requests of a run, over those in flight, where it has no end: as many as benchmarks send (InferenceX)."""
_PARTS = 1, 2, 4, 8, 32
"""Of the sequences that run at a time, those with which steps are timed; in between time is linear."""
_STEPS_TO_FIRST_TOKEN = 1.5
"""The decoding worker gives out the first token: when a prompt's cache arrives, half a step is still to run."""


@dataclass(frozen=True, slots=True)
class ApartParts:
    """What such latencies are made of, in seconds, before the constants of `PrefillApart`."""

    concurrency: int
    engine: Engine
    prefill_groups: int
    """Attention groups of a prefill worker."""
    request_s: float
    """The engine's own share of a request."""
    played: PlayedRun
    """The prompt, its transfer, and what waits for both."""
    load: GroupLoad
    """Of the decoding workers."""

    def ttft_s(self, apart: PrefillApart) -> float:
        """Return the time to first token under the constants of deployments with prefill apart."""
        overhead_s = self.request_s + apart.request_s(self.engine, self.prefill_groups)
        return self.played.first_token_s(overhead_s + self.concurrency * apart.concurrency_overhead_s)


def apart_parts(prefill: ServingPool, decode: ServingPool, concurrency: int) -> ApartParts:
    """Return the parts of the latencies of two pools under a closed loop of requests."""
    work, load = decode.workload, group_load(decode, concurrency)
    groups = decode.strategy.attn_dp
    run = TwoStageRun(
        concurrency=concurrency,
        waves=decode.waves or _WAVES,
        prompts=prompt_steps(prefill),
        prompt_workers=prefill.num_workers,
        handed_over_s=handover_s(prefill, decode) + _STEPS_TO_FIRST_TOKEN * load.decode_s,
        workers=decode.num_workers,
        slots=decode.capacity() * groups,
        token_s=tuple(
            (running * groups, decode_token_s(decode, running))
            for running in sorted({1.0, *(max(load.running / part, 1.0) for part in _PARTS)})
        ),
        output_tokens=work.output_tokens,
        shortest_share=work.shortest_share,
        frontends=decode.frontends,
    )
    return ApartParts(
        concurrency=concurrency,
        engine=prefill.engine,
        prefill_groups=prefill.strategy.attn_dp,
        request_s=prefill.overheads.request_overhead_s,
        played=played(run),
        load=load,
    )


def prompt_steps(prefill: ServingPool) -> PromptSteps:
    """Return what steps of a worker take that computes prompts and nothing else."""
    work = prefill.workload
    chunk = min(work.input_tokens, prefill.step_tokens)
    chunks = work.input_tokens / chunk
    alone_s, beside_s = prefill.prompt_alone_s(chunk) * chunks, prefill.step_s(chunk, 0, 0) * chunks
    most = max(prefill.step_tokens / work.input_tokens, 1.0)
    if prefill.scheduling.takes_whole_prompts:
        most = float(math.floor(most))
    full_s = prefill.step_s(round(most * work.input_tokens), 0, 0) if most > 1 else beside_s
    return PromptSteps(prefill.strategy.attn_dp, alone_s, beside_s, full_s, most)


def disaggregated_latency(
    prefill: ServingPool, decode: ServingPool, concurrency: int, apart: PrefillApart
) -> ServingLatency:
    """Return the latencies where prompts are computed by one pool and handed over to another that decodes.

    Of requests that arrive at a rate `concurrency` is what that leads to. They come one by one: each waits for those
    before it, in a queue (M/D/1) whose service is a full step of all prompts' workers.
    """
    if decode.in_closed_loop:
        parts = apart_parts(prefill, decode, concurrency)
        return ServingLatency(parts.ttft_s(apart), parts.load.token_s)
    steps, decode_s = prompt_steps(prefill), group_load(decode, concurrency).token_s
    busy = (decode.workload.request_rate_per_s or 0.0) / prefill.num_workers * steps.full_s / steps.capacity
    ttft_s = (
        prefill.overheads.request_overhead_s
        + apart.request_s(prefill.engine, prefill.strategy.attn_dp)
        + concurrency * apart.concurrency_overhead_s
        + queue_wait_s(busy, steps.full_s)
        + steps.alone_s
        + handover_s(prefill, decode)
        + _STEPS_TO_FIRST_TOKEN * decode_s
    )
    return ServingLatency(ttft_s, decode_s)


def handover_s(prefill: ServingPool, decode: ServingPool) -> float:
    """Return the seconds that one prompt's cache takes to the decode pool, every GPU of its group sending its part."""
    work, cluster = decode.workload, decode.cluster
    schedule = Schedule(
        num_microbatches=1,
        prefill_tokens=0,
        prompt_tokens=0,
        decode_sequences=1,
        context_tokens=work.input_tokens,
    )
    graph = build_step_graph(decode.model, decode.strategy, schedule, decode.options, training=False)
    size = cache_bytes(graph, range(decode.model.num_layers), work.input_tokens, 1) * decode.strategy.tp
    tier = len(cluster.tiers) - 1
    rate = cluster.bandwidth_per_gpu(tier) * decode.calibration.collectives.network_efficiency
    return cluster.tiers[tier].latency_s + size / (prefill.strategy.tp * prefill.strategy.pp * rate)
