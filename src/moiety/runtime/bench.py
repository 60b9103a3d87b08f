"""The bench: the plan's own step, and smaller ones with every op timed, on random tokens."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING, cast

import torch

from moiety.runtime.conversion import integers
from moiety.runtime.model.batch import Segment, packed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.plan import Schedule
    from moiety.runtime.engine import Engine
    from moiety.runtime.model.batch import Batch
    from moiety.runtime.model.rank_model import RankModel
    from moiety.runtime.telemetry import Telemetry

REPEATS = 5
SHARES = (1.0, 0.5, 0.25)
"""Sizes of the steps whose ops are timed, as shares of the plan's micro-batch."""


@dataclass(frozen=True, slots=True)
class BenchStep:
    """The micro-batches of one step of an attention group."""

    batches: tuple[Batch, ...]
    num_slots: int
    capacity: int


@dataclass(frozen=True, slots=True)
class _Run:
    """One repeat of a step on one rank."""

    step_s: float
    busy_s: dict[str, float]
    """By op and layer."""
    wait_s: dict[str, float]
    communication_s: float
    """Seconds in which something was on its way to or from this rank."""
    exposed_s: float
    """Seconds in which the rank only waited for it."""


def bench_step(model: RankModel, schedule: Schedule) -> BenchStep:
    """Return random tokens in the shape that `schedule` says, the same shape on every rank."""
    vocabulary = model.seat.plan.model.vocab_size
    generator = torch.Generator().manual_seed(model.seat.attention_group)
    slot, capacity = 0, 1
    batches: list[Batch] = []
    for _ in range(schedule.num_microbatches):
        segments: list[Segment] = []
        left = schedule.prefill_tokens
        while left > 0:
            length = min(left, schedule.prompt_tokens or left)
            segments.append(Segment(slot, 0, _random_ids(length, vocabulary, generator), emits=True))
            left -= length
            slot, capacity = slot + 1, max(capacity, length)
        for _ in range(schedule.decode_sequences):
            context = max(schedule.context_tokens, 1)
            segments.append(Segment(slot, context, _random_ids(1, vocabulary, generator), emits=True))
            slot, capacity = slot + 1, max(capacity, context + 1)
        batches.append(packed(segments, model.device, len(batches)))
    return BenchStep(tuple(batches), slot, capacity)


def smaller(schedule: Schedule, share: float) -> Schedule:
    """Return one micro-batch of `share` of the size."""
    prefill = math.ceil(schedule.prefill_tokens * share)
    return schedule.model_copy(
        update={
            "num_microbatches": 1,
            "prefill_tokens": prefill,
            "prompt_tokens": min(schedule.prompt_tokens, prefill),
            "decode_sequences": math.ceil(schedule.decode_sequences * share),
        }
    )


def run_bench(engine: Engine, model: RankModel, telemetry: Telemetry) -> dict[str, object]:
    """Return what the plan's step takes and how much of its communication stays hidden, and what its ops take.

    Seconds of a step are those of the slowest rank, the median over the repeats. Seconds of an op in a layer are the
    median over the repeats of the mean over ranks, apart where the rank was busy and where it waited for transfers;
    they include everything since the op before it.
    """
    schedule = model.seat.pool.schedule
    whole = bench_step(model, schedule)
    measured = _timed(engine, whole, telemetry, overlapped=engine.overlaps, device=model.device)
    alone = _timed(engine, whole, telemetry, overlapped=False, device=model.device) if engine.overlaps else measured
    observed: list[dict[str, object]] = []
    for share in SHARES:
        part = smaller(schedule, share)
        if observed and part.model_dump(mode="json") == observed[-1]["schedule"]:
            continue
        outcome = _timed(engine, bench_step(model, part), telemetry, overlapped=False, device=model.device)
        observed.append({"schedule": part.model_dump(mode="json"), **outcome})
    return {"step": measured, "step_not_overlapped": alone, "observed": observed}


def _timed(
    engine: Engine, step: BenchStep, telemetry: Telemetry, *, overlapped: bool, device: torch.device
) -> dict[str, object]:
    """Return what all ranks took for the step, repeated.

    On a GPU the step is timed by itself and its ops in another one, since each op's end is waited for there.
    """
    runs: list[_Run] = []
    cache = engine.new_cache(step.num_slots, step.capacity)
    engine.timed_step(step.batches, cache, overlapped=overlapped)  # memory and connections are made here
    for _ in range(REPEATS):
        engine.world.barrier()
        telemetry.begin()
        seconds = engine.timed_step(step.batches, cache, overlapped=overlapped)
        telemetry.end()
        if device.type == "cuda":
            engine.world.barrier()
            seconds = engine.timed_step(step.batches, cache, overlapped=overlapped)
        moving_s, waited_s = telemetry.communication()
        runs.append(_Run(seconds, *telemetry.seconds_by_op(), moving_s, waited_s))
    return _joined(cast("list[list[_Run]]", engine.world.gather_objects(runs)))


def _joined(ranks: Sequence[list[_Run]]) -> dict[str, object]:
    """Return the ranks' repeats as one outcome."""
    repeats = list(zip(*ranks, strict=True))
    steps = [max(rank.step_s for rank in each) for each in repeats]
    moving = median(mean(rank.communication_s for rank in each) for each in repeats)
    waited = median(mean(rank.exposed_s for rank in each) for each in repeats)
    return {
        "step_s": median(steps),
        "fastest_step_s": min(steps),
        "busy_s": _typical([[rank.busy_s for rank in each] for each in repeats]),
        "wait_s": _typical([[rank.wait_s for rank in each] for each in repeats]),
        "communication_s": moving,
        "exposed_s": waited,
        "overlap_fraction": min(max(1 - waited / moving, 0.0), 1.0) if moving else 1.0,
        "exposed_communication_fraction": waited / median(steps),
    }


def _typical(repeats: list[list[dict[str, float]]]) -> dict[str, float]:
    """Return by name the median over the repeats of the mean over the ranks that have it."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for ranks in repeats:
        for name in sorted({name for rank in ranks for name in rank}):
            found[name].append(mean(rank[name] for rank in ranks if name in rank))
    return {name: median(values) for name, values in sorted(found.items())}


def _random_ids(length: int, vocabulary: int, generator: torch.Generator) -> tuple[int, ...]:
    return tuple(integers(torch.randint(0, vocabulary, (length,), generator=generator)))
