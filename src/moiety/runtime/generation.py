"""Generation: what every rank of `moiety run` does with its job: load its part, continue the prompts, report."""

from __future__ import annotations

import resource
import sys
import time
from typing import TYPE_CHECKING

import torch

from moiety.errors import InputError
from moiety.runtime.bench import run_bench
from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.comm.network import Network
from moiety.runtime.conversion import integers
from moiety.runtime.engine import MAX_SEQUENCES, Engine
from moiety.runtime.model.load import load_model
from moiety.runtime.overlap import Turns
from moiety.runtime.sampling import GREEDY_BELOW, Sampling
from moiety.runtime.seat import seat_of
from moiety.runtime.steady import decode_allocations, outside_arena
from moiety.runtime.telemetry import Telemetry, clock_of

if TYPE_CHECKING:
    from moiety.runtime.comm.traffic import Observer
    from moiety.runtime.engine import StepTimes
    from moiety.runtime.model.rank_model import RankModel
    from moiety.runtime.post import Post, Report


def generate(post: Post) -> Report:
    """Return this rank's report of the job: the new tokens of every prompt, and what they took."""
    job, rank = post.job, post.world.rank
    telemetry = Telemetry(clock_of(device_of(post))) if job.bench or job.trace else None
    network = network_of(post, telemetry)
    resident_bytes = _resident_bytes()
    try:
        turns = Turns()
        seat = seat_of(job.plan, rank)
        model = load_model(seat, Checkpoint.open(job.checkpoint), network, turns=turns, recorder=telemetry)
        engine = Engine(model, network, turns)
        engine.world.barrier()
        zero_s = time.perf_counter()
        if telemetry is not None and job.trace:
            telemetry.begin()
        outputs = engine.generate(
            job.prompts,
            max_new_tokens=job.max_new_tokens,
            sampling=Sampling(job.temperature, job.top_p, job.top_k, job.seed),
            stop=frozenset(job.stop_token_ids),
        )
        report: Report = {"outputs": outputs, "measured": _measured(engine.times, outputs)}
        if telemetry is not None and job.trace:
            telemetry.end()
            report["trace"] = telemetry.events(rank, tuple(tier.name for tier in job.plan.cluster.tiers), zero_s)
        sent = network.traffic.snapshot()  # of the prompts alone
        report["rank"] = _of_rank(model, engine, sent, draws=job.temperature >= GREEDY_BELOW)
        if telemetry is not None and job.bench:
            report["bench"] = {
                **run_bench(engine, model, telemetry),
                "resident_bytes": resident_bytes,
                "allocations_per_step": decode_allocations(engine, model, min(len(job.prompts), MAX_SEQUENCES)),
            }
        return report
    finally:
        network.close()


def network_of(post: Post, observer: Observer | None = None) -> Network:
    """Return the network of a rank among all ranks of its job."""
    return Network(
        rank=post.world.rank,
        world_size=post.world.size,
        store=post.store,
        tiers=post.job.plan.cluster.tiers,
        device=device_of(post),
        observer=observer,
        transport=post.job.transport,
    )


def device_of(post: Post) -> torch.device:
    """Return the device of a rank: its GPU where the plan's cluster has GPUs and the machine does too, else the CPU.

    Raises InputError where this machine has more ranks than GPUs.
    """
    if post.job.plan.cluster.device.architecture == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    place, num_gpus = post.world.local_rank, torch.cuda.device_count()
    if place >= num_gpus:
        rule = f"this machine has {num_gpus} GPU{'s' if num_gpus > 1 else ''}, and every rank takes one"
        remedy = f"start at most {num_gpus} here, or rehearse the plan on so many with --fold {num_gpus}"
        raise InputError(rule, field="LOCAL_RANK", value=place, remedy=remedy)
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def _measured(times: StepTimes, outputs: list[list[int]]) -> dict[str, object]:
    """Return the seconds of a generation: to the first tokens, then for each further one, and tokens per second."""
    prefill, decode = sum(times.prefill_s), sum(times.decode_s)
    tokens = sum(len(each) for each in outputs)
    return {
        "ttft_s": prefill,
        "tpot_s": decode / len(times.decode_s) if times.decode_s else None,
        "throughput_tokens_per_s": tokens / (prefill + decode) if prefill + decode else None,
        "num_prefill_steps": len(times.prefill_s),
        "num_decode_steps": len(times.decode_s),
    }


def _of_rank(model: RankModel, engine: Engine, sent: object, *, draws: bool) -> dict[str, object]:
    """Return what one rank holds, read, sent and routed."""
    return {
        "weight_bytes": sum(model.weight_bytes.values()),
        "weight_bytes_by_kind": dict(model.weight_bytes),
        "expanded_weight_bytes": model.expanded_bytes,
        "checkpoint_bytes_read": model.bytes_read,
        "cache_bytes": engine.cache_bytes,
        "arena": {
            "outside": outside_arena(model, draws=draws),
            **({} if model.decoding is None else model.decoding.document()),
        },
        "sent": sent,
        "expert_backends": sorted({each.held.backend.name for each in model.expert_layers.values()}),
        "expert_counts": {str(index): integers(each.counts) for index, each in model.expert_layers.items()},
    }


def _resident_bytes() -> int:
    """Return the most memory that this process has held so far: libraries, before any weight."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
