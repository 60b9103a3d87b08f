"""A plan's workers in the serving simulation: what a step takes, and what the cache holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moiety.calibration.serving import NOTHING_APART
from moiety.projection.serving_apart import handover_s
from moiety.projection.speculation import tokens_per_step
from moiety.sim.arrivals import Lengths, together
from moiety.sim.serving import PrefillStage, ServingEngine, ServingOutcome, simulate_serving

if TYPE_CHECKING:
    from moiety.calibration.serving import PrefillApart
    from moiety.projection.serving_pool import ServingPool

_EXACT, _STEPS_PER_DOUBLING = 16, 12
_UNLIMITED = 2**30


class StepTable:
    """A pool's step times at rounded sizes (within 3 %), each computed once.

    `decodes`: there are sequences that wait while prompts are computed.
    """

    def __init__(self, pool: ServingPool, *, decodes: bool = True) -> None:
        self._pool = pool
        self._decodes = decodes
        self._known: dict[tuple[int, int, int], float] = {}

    def __call__(self, prefill_tokens: int, sequences: int, context_tokens: int) -> float:
        """Return the seconds of a step."""
        key = (_rounded(prefill_tokens), _rounded(sequences), _rounded(context_tokens))
        if key not in self._known:
            self._known[key] = self._step_s(*key)
        return self._known[key]

    def _step_s(self, prefill_tokens: int, sequences: int, context_tokens: int) -> float:
        """Return the seconds of a step, in which each sequence advances by one token.

        A chunk costs the sequences that wait for it its measured interference, whether it is beside them in a step or
        has one of its own.
        """
        pool = self._pool
        if not sequences:
            waited = self._decodes and not pool.scheduling.mixes_prefill
            drained = not (self._decodes and pool.pipelines_prompts)
            return (pool.overheads.interference if waited else 1.0) * pool.step_s(prefill_tokens, 0, 0, drained=drained)
        decode_s = pool.step_s(0, sequences, context_tokens)
        token_s = decode_s / tokens_per_step(pool.draft_tokens, pool.acceptance)
        if not prefill_tokens:
            return token_s
        return token_s + pool.overheads.interference * (
            pool.step_s(prefill_tokens, sequences, context_tokens) - decode_s
        )


def _rounded(size: int) -> int:
    """Return the nearest of the sizes that times are kept for: all small ones, then twelve a doubling."""
    if size <= _EXACT:
        return size
    return round(2 ** (round(math.log2(size) * _STEPS_PER_DOUBLING) / _STEPS_PER_DOUBLING))


def serving_engine(
    pool: ServingPool,
    prefill: ServingPool | None = None,
    apart: PrefillApart = NOTHING_APART,
    *,
    prefix_hit_rate: float = 0.0,
) -> ServingEngine:
    """Return one attention group of `pool`; with its share of the prompts' workers where `prefill` computes them.

    `apart` is what such deployments were measured to add.
    """
    stage, overhead_s = None, pool.overheads.request_overhead_s
    each_in_flight_s = pool.overheads.concurrency_overhead_s / pool.num_workers
    if prefill is None:
        overhead_s += _seen_later_s(pool)
    else:
        share = prefill.num_groups / pool.num_groups
        workers = max(round(share), 1)
        table, slower = StepTable(prefill, decodes=False), workers / share
        overhead_s += apart.request_s(prefill.engine, prefill.strategy.attn_dp)
        each_in_flight_s = apart.concurrency_overhead_s
        stage = PrefillStage(
            num_workers=workers,
            step_tokens=prefill.step_tokens,
            step_s=lambda prefill_tokens, sequences, context_tokens: (
                slower * table(prefill_tokens, sequences, context_tokens)
            ),
            transfer_s_per_token=handover_s(prefill, pool) / pool.workload.input_tokens,
        )
    return ServingEngine(
        step_s=StepTable(pool),
        chunk_tokens=pool.step_tokens,
        mixes_prefill=pool.scheduling.mixes_prefill,
        cache_tokens=pool.capacity() * pool.workload.decode_context_tokens,
        max_sequences=pool.max_sequences or _UNLIMITED,
        request_overhead_s=overhead_s,
        concurrency_overhead_s=each_in_flight_s * pool.num_groups,
        prefix_hit_rate=prefix_hit_rate,
        prefill=stage,
    )


def _seen_later_s(pool: ServingPool) -> float:
    """Return how much later than its prompt's steps end a request sees its first token."""
    work, slowdown = pool.workload, pool.prompt_slowdown
    chunk = min(work.input_tokens, pool.step_tokens)
    beside = int(pool.scheduling.mixes_prefill)
    own_s = pool.step_s(chunk, beside, work.decode_context_tokens) * work.input_tokens / chunk
    return (slowdown - 1) * own_s + slowdown * pool.drain_s(chunk, beside)


def simulated_closed_loop(
    pool: ServingPool, concurrency: int, prefill: ServingPool | None = None, *, requests_per_sequence: int = 5
) -> ServingOutcome:
    """Return what requests see in a closed loop, in one attention group with its share of the requests in flight.

    The run begins with all of them at once, as benchmarks do, and ends with the last answer.
    """
    share = max(round(concurrency / pool.num_groups), 1)
    work = pool.workload
    lengths = Lengths(work.input_tokens, work.output_tokens, work.shortest_share)
    requests = together(lengths, count=share * requests_per_sequence)
    return simulate_serving(serving_engine(pool, prefill), requests, concurrency=share)
