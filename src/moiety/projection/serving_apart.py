"""Latencies where prompts are computed by one pool of workers and handed over to another that decodes, in closed form.

A closed loop with two places to wait: a prefill worker, and one of the sequences that the decoding workers let run.
Who waits for the one is not in the queue for the other, so the longer wait hides the shorter: of the time that requests
do not decode, `offered / running - 1` answers long, all that happens to a prompt is a part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.cost.memory import cache_bytes
from moiety.graph.graph import build_step_graph
from moiety.plan import Schedule
from moiety.projection.admission import CHUNK_TOKENS
from moiety.projection.queue import closed_loop_load
from moiety.projection.serving import GroupLoad, ServingLatency, group_load

if TYPE_CHECKING:
    from moiety.calibration.calibration import Engine
    from moiety.calibration.serving import PrefillApart
    from moiety.projection.serving_pool import ServingPool

_SHARPNESS = 3
"""Power of the norm that joins the two waits: 1 would add them, without end the longer alone counts.

Chosen on 613 published rows with prefill apart: their times to first token are missed by 28 % for 3, 29 % for 2, 6 or
20, and 37 % for 1.
"""


@dataclass(frozen=True, slots=True)
class ApartParts:
    """What such latencies are made of, in seconds, before the constants of `PrefillApart`."""

    engine: Engine
    concurrency: int
    prefill_groups: int
    """Attention groups of a prefill worker."""
    prompts: float
    """Requests in flight for each attention group of the prefill pool."""
    request_s: float
    """The engine's own share of a request."""
    prompt_s: float
    """A prompt alone in its group."""
    filled_s: float
    """A prompt's share of full steps: prompts that wait fill a step together."""
    moved_s: float
    decode_s: float
    """An answer after its first token."""
    slot_s: float
    """What a request spends outside of the decoding workers in the mean, if they set the pace."""
    load: GroupLoad
    """Of the decoding workers."""

    def ttft_s(self, apart: PrefillApart) -> float:
        """Return the time to first token under the constants of deployments with prefill apart."""
        slowdown = apart.prompt_slowdown.get(self.engine, 1.0)
        prompt_s, filled_s = slowdown * self.prompt_s, slowdown * self.filled_s
        demand_s, elsewhere_s = self.prompts * filled_s, prompt_s + self.moved_s + self.decode_s
        busy = closed_loop_load(demand_s, elsewhere_s, filled_s)
        for_worker_s = max(demand_s / busy - elsewhere_s, 0.0)
        ready_s = (
            self.request_s
            + apart.request_s(self.prefill_groups)
            + self.concurrency * apart.concurrency_overhead_s
            + prompt_s
            + self.moved_s
            + for_worker_s
            + apart.burst * demand_s
        )
        return (ready_s**_SHARPNESS + self.slot_s**_SHARPNESS) ** (1 / _SHARPNESS)


def apart_parts(prefill: ServingPool, decode: ServingPool, concurrency: int) -> ApartParts:
    """Return the parts of the latencies of two pools under a closed loop of requests."""
    work, load = decode.workload, group_load(decode, concurrency)
    chunk = min(work.input_tokens, CHUNK_TOKENS)
    prompt_s = prefill.step_s(chunk, 0, 0) * work.input_tokens / chunk
    decode_s = max(work.output_tokens - 1, 0) * load.token_s
    return ApartParts(
        engine=prefill.release.engine,
        concurrency=concurrency,
        prefill_groups=prefill.strategy.attn_dp,
        prompts=concurrency / prefill.num_groups,
        request_s=prefill.release.request_overhead_s,
        prompt_s=prompt_s,
        filled_s=min(prefill.step_s(CHUNK_TOKENS, 0, 0) * work.input_tokens / CHUNK_TOKENS, prompt_s),
        moved_s=handover_s(prefill, decode),
        decode_s=decode_s,
        slot_s=(load.offered / load.running - 1) * decode_s,
        load=load,
    )


def disaggregated_latency(
    prefill: ServingPool, decode: ServingPool, concurrency: int, apart: PrefillApart
) -> ServingLatency:
    """Return the latencies where prompts are computed by one pool and handed over to another that decodes."""
    parts = apart_parts(prefill, decode, concurrency)
    load = parts.load
    return ServingLatency(parts.ttft_s(apart), load.token_s, load.decode_s, parts.prompt_s, load.running)


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
    return cluster.tiers[tier].latency_s + size / (prefill.strategy.tp * rate)
