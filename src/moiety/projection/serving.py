"""Latencies of a serving engine in closed form: of requests in a closed loop, or that arrive at a rate.

`sim/serving.py` plays the same steps request by request; docs/accuracy.md says which of the two gave a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.projection.admission import CHUNK_TOKENS
from moiety.projection.queue import queue_wait_s
from moiety.projection.speculation import tokens_per_step

if TYPE_CHECKING:
    from moiety.projection.serving_pool import ServingPool

MOST_SEQUENCES = 2048
"""Sequences that TensorRT-LLM runs at a time by default (`max_batch_size`)."""
MOST_BURST = 0.5
"""Of n prompts that come together the mean one waits for half of the others."""
_FULL = 0.98
"""Share of the time beyond which a queue is not taken to be steady."""
_NEVER = 1e-12
"""Share of the time that is left where prompts arrive faster than they are computed: nothing is divided by 0."""


@dataclass(frozen=True, slots=True)
class ServingLatency:
    """What a mean request sees, in seconds."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class GroupLoad:
    """A group's share of the requests in flight, and what one step of it takes."""

    offered: float
    running: float
    decode_s: float
    """A step without prompts."""
    token_s: float
    """The same for each token that a sequence advances by."""
    prefill_s: float
    """A step that holds a chunk of a prompt."""
    added_s: float
    """What a chunk adds to the group's time."""
    chunks: float
    """Steps with a chunk that a prompt takes."""
    drain_s: float
    """What the last of them takes longer by until all of it is through a pipeline, in which other steps have begun."""

    @property
    def sequences(self) -> int:
        """Sequences that a step holds, whole."""
        return whole_sequences(self.running)


def aggregated_latency(pool: ServingPool, concurrency: int) -> ServingLatency:
    """Return the latencies of workers that run prompts and output tokens on the same GPUs.

    TPOT: a decode step, the group's share of the prompts that are computed meanwhile, and the time in which a sequence
    has been thrown out of the cache. TTFT: the engine's own share; the prompt's chunks; the wait to be taken up (half
    the running step, where the engine does so at every one) and for the prompts ahead (M/D/1 at the share of the time
    that chunks take); the prompts that come together, at a run's start and where all answers are equally long, which
    fill the steps that compute them; kernels that a run without warm-up has made; and, where the cache is full, a
    running request's whole time, as far as it is not waited later.

    In lockstep all prompts are computed one step after the other: what a request waits for comes before its first
    token or after it, and only the latter is in its time per output token; nothing else waits in a queue.

    Of requests that arrive at a rate `concurrency` is what that leads to: a queue of all the time has no end.
    """
    engine, work = pool.overheads, pool.workload
    load = group_load(pool, concurrency)
    ahead = prompts_ahead(pool, load.running)
    prompt_s = filled_prompt_s(pool, load) if ahead else 0.0
    tpot_s = load.token_s + engine.interference * _stalled_s(pool, load, prompt_s)
    step_s = tpot_s - load.token_s + load.decode_s
    out = pool.thrown_out(load.offered, load.running)
    own_s = load.prefill_s * load.chunks + load.drain_s
    busy = 0.0 if pool.in_lockstep else _busy(pool, load, tpot_s)
    ttft_s = (
        engine.request_overhead_s
        + concurrency / pool.num_workers * engine.concurrency_overhead_s
        + pool.prompt_slowdown * own_s
        + engine.wait * (pool.admission_steps(load.running) * step_s + _queued_s(pool, load, busy))
        + engine.interference * ahead * prompt_s
        + cold_s(pool, load.running)
        + (load.offered / load.running - 1 - out) * work.output_tokens * tpot_s
    )
    decode_s = (work.output_tokens - 1) * tpot_s
    if pool.in_closed_loop and engine.interference * load.running * own_s > ttft_s + decode_s:
        # answers are over before the prompts of all others are: these set the time of a request
        ttft_s = max(ttft_s, engine.interference * load.running * filled_prompt_s(pool, load) - decode_s)
    return ServingLatency(ttft_s, (1 + out) * tpot_s)


def _stalled_s(pool: ServingPool, load: GroupLoad, prompt_s: float) -> float:
    """Return what each output token waits for the prompts that are computed meanwhile, all of it.

    Those of the group's other requests, one of each in the time of an answer; or those that arrive in the time until
    the next token, and what is left of the one that follows a request's own (half of it more than at any moment).
    """
    if pool.in_lockstep:
        return prompts_behind(pool, load.running) * prompt_s / pool.workload.output_tokens
    if pool.in_closed_loop:
        share = load.running * load.chunks / pool.workload.output_tokens
        return max(load.running - 1, 0) / load.running * share * load.added_s * _seen(pool, share)
    step_s, rate = _arriving_prompt_s(pool, load), _prompts_per_s(pool)
    beside = load.decode_s / load.prefill_s if pool.scheduling.mixes_prefill else 0.0
    each_s = step_s * (1 - beside) * _seen(pool, rate * load.chunks * load.token_s)
    behind_s = min(rate * step_s, 1.0) * each_s / 2 / pool.workload.output_tokens
    seen = pool.overheads.interference
    tpot_s = (load.token_s + seen * behind_s) / max(1 - seen * rate * each_s, _NEVER)
    return rate * each_s * tpot_s + behind_s


def _queued_s(pool: ServingPool, load: GroupLoad, busy: float) -> float:
    """Return what a request waits for the prompts ahead: in a closed loop no more than those of all others."""
    prompt_s = load.prefill_s * load.chunks
    wait_s = queue_wait_s(busy, prompt_s)
    return min(wait_s, (load.running - 1) * prompt_s) if pool.in_closed_loop else wait_s


def _busy(pool: ServingPool, load: GroupLoad, tpot_s: float) -> float:
    """Return the share of the time in which a group computes chunks of prompts."""
    if not pool.in_closed_loop:
        return min(_prompts_per_s(pool) * _arriving_prompt_s(pool, load), 1.0)
    return min(load.running * load.chunks / pool.workload.output_tokens * load.added_s / tpot_s, _FULL)


def _prompts_per_s(pool: ServingPool) -> float:
    """Return the requests that arrive at an attention group in a second."""
    return (pool.workload.request_rate_per_s or 0.0) / pool.num_groups


def _arriving_prompt_s(pool: ServingPool, load: GroupLoad) -> float:
    """Return the steps' time that a prompt takes of those that arrive: the more of them wait, the fuller are steps."""
    work, mixes = pool.workload, pool.scheduling.mixes_prefill
    alone_s = load.prefill_s * load.chunks
    full_s = pool.step_s(pool.step_tokens, load.sequences if mixes else 0, work.decode_context_tokens)
    full_s *= work.input_tokens / pool.step_tokens
    waits = min(_prompts_per_s(pool) * alone_s, 1.0)
    return (1 - waits) * alone_s + waits * min(full_s, alone_s)


def offline_sequences(pool: ServingPool, num_requests: int | None = None) -> float:
    """Return how many sequences a group runs at a time, on average, when every request is there from the start.

    As many as the cache holds to their last token, for the engine lets none start that might not end (TensorRT-LLM's
    default), and `MOST_SEQUENCES` at the most. A run of `num_requests` takes whole waves of them; None: it has no end.
    """
    work = pool.workload
    most = max(min(pool.capacity(work.input_tokens + work.output_tokens), MOST_SEQUENCES), 1.0)
    if num_requests is None:
        return most
    each = num_requests / pool.num_groups
    return each / math.ceil(each / most)


def offline_throughput(pool: ServingPool, num_requests: int | None = None) -> float:
    """Return output tokens a second of all workers in such a run; waiting prompts fill the steps that compute them."""
    work, engine = pool.workload, pool.overheads
    load = group_load(pool, offline_sequences(pool, num_requests) * pool.num_groups, chunk=CHUNK_TOKENS)
    share = load.running * load.chunks / work.output_tokens
    step_s = load.token_s + engine.interference * share * load.added_s * _seen(pool, share)
    return pool.num_groups * load.running / step_s


def _seen(pool: ServingPool, share: float) -> float:
    """Return the chunks' time that a group sees over that of its own, `share` a step, where groups step as one.

    Groups take up prompts each in its own time, so that of n groups one at least has a chunk in 1 - (1 - share)^n of
    the steps. Of a step with a chunk elsewhere a group waits through the part that is not shared work.
    """
    own = min(share, 1.0)
    elsewhere = (1 - (1 - own) ** pool.strategy.attn_dp) / own - 1 if own > 0 else 0.0
    return 1 + pool.overheads.unshared_prefill * elsewhere


def filled_prompt_s(pool: ServingPool, load: GroupLoad) -> float:
    """Return what a prompt adds to the wait where those of all its group's sequences wait: they fill steps together.

    Prompts that are not cut wait for whole steps, with all that these decode.
    """
    work, mixes = pool.workload, pool.scheduling.mixes_prefill
    tokens = filled_tokens(pool, load.running)
    step_s = pool.step_s(tokens, load.sequences if mixes else 0, work.decode_context_tokens)
    whole = not mixes or pool.scheduling.takes_whole_prompts
    return (step_s if whole else step_s - load.decode_s) * work.input_tokens / tokens


def prompts_ahead(pool: ServingPool, sequences: float) -> float:
    """Return the prompts that come together with a mean request's and go before: of the batch that a run starts with.

    Where all answers are equally long, those that began together end together, and so do their successors begin: of a
    convoy the mean prompt waits for half of the others. Such runs have as many requests whatever the concurrency, so
    that the batch is the larger a part of them; others, a multiple of the concurrency. In lockstep all come together,
    and those of one step end with it. What arrives at a rate of its own does not come together.
    """
    if not pool.in_closed_loop:
        return 0.0
    engine = pool.overheads
    if pool.in_lockstep:
        return max((sequences + _prompts_a_step(pool, sequences)) / 2 - 1, 0.0)
    if not pool.equal_lengths:
        return min(engine.burst, MOST_BURST) * sequences
    share = min(engine.burst + engine.burst_growth * sequences / 64, MOST_BURST)
    return share * sequences + max(min(sequences, engine.convoy) - 1, 0) / 2


def prompts_behind(pool: ServingPool, sequences: float) -> float:
    """Return the prompts that are computed between a mean request's first token and its second, in lockstep."""
    return max(sequences - _prompts_a_step(pool, sequences), 0.0) / 2


def _prompts_a_step(pool: ServingPool, sequences: float) -> float:
    """Return how many prompts a step takes where those of all sequences wait; one that takes several steps is one."""
    return max(filled_tokens(pool, sequences) / pool.workload.input_tokens, 1.0)


def filled_tokens(pool: ServingPool, sequences: float) -> int:
    """Return the prompt tokens of a step where those of all sequences wait."""
    return min(round(max(sequences, 1.0) * pool.workload.input_tokens), pool.step_tokens)


def cold_s(pool: ServingPool, sequences: float) -> float:
    """Return what a mean request waits for kernels to be made: in a run without warm-up whose start fills a step."""
    if not starts_cold(pool, sequences):
        return 0.0
    engine = pool.overheads
    return engine.cold_fp4_step_s if pool.options.dtypes.experts == "fp4" else engine.cold_step_s


def starts_cold(pool: ServingPool, sequences: float) -> bool:
    """Return whether the prompts that a run starts with fill a step for the first time."""
    return pool.cold_tokens is not None and sequences * pool.workload.input_tokens >= pool.cold_tokens


def whole_sequences(running: float) -> int:
    """Return the sequences that a step holds where so many run on average."""
    return math.ceil(running - 1e-9)


def decode_token_s(pool: ServingPool, running: float) -> float:
    """Return the seconds of a step without prompts for each token that so many sequences of a group advance by."""
    step_s = pool.step_s(0, whole_sequences(running), pool.workload.decode_context_tokens)
    return step_s / tokens_per_step(pool.draft_tokens, pool.acceptance)


def group_load(pool: ServingPool, concurrency: float, chunk: int | None = None) -> GroupLoad:
    """Return what the decoding workers of `pool` do at a time; a step takes a prompt's tokens unless `chunk` says.

    A request that arrives at random finds as many as there are on average, and is one more.
    """
    work = pool.workload
    offered = max(concurrency / pool.num_groups, 1.0) if pool.in_closed_loop else concurrency / pool.num_groups + 1
    running = min(offered, pool.capacity())
    sequences = whole_sequences(running)
    context = work.decode_context_tokens
    chunk = chunk or min(work.input_tokens, pool.step_tokens)
    decode_s = pool.step_s(0, sequences, context)
    if pool.scheduling.mixes_prefill:
        prefill_s = pool.step_s(chunk, sequences, context)
        added_s = prefill_s - decode_s
    else:
        prefill_s = added_s = pool.step_s(chunk, 0, 0)
    token_s = decode_s / tokens_per_step(pool.draft_tokens, pool.acceptance)
    drain_s = pool.drain_s(chunk, sequences)
    return GroupLoad(offered, running, decode_s, token_s, prefill_s, added_s, work.input_tokens / chunk, drain_s)
