"""Projection of a finished plan: throughput, latency, utilisation, power, each with what it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.cost.power import padding_flops, power_w, products_peak
from moiety.graph.model_flops import model_flops_per_token
from moiety.plan import Plan, Pool, Projection
from moiety.projection.phase import PhaseOutcome, PoolCase, phase_outcome
from moiety.projection.provenance import provenance
from moiety.projection.scenario import Scenario, scenario_of
from moiety.projection.serving_apart import disaggregated_latency
from moiety.projection.serving_plan import apart_of, as_workers

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.cluster.device import Device
    from moiety.model.model import Model
    from moiety.plan import DtypePolicy, Options
    from moiety.projection.step import Timing


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A plan with its projection and memory filled in, and what each pool's phase came to."""

    plan: Plan
    phases: tuple[PhaseOutcome, ...]


@dataclass(frozen=True, slots=True)
class EvaluatedPools:
    """A plan's pools with what each comes to, and what they come to together."""

    pools: tuple[Pool, ...]
    phases: tuple[PhaseOutcome, ...]
    whole: Projection


def evaluate(plan: Plan, calibration: Calibration, *, timing: Timing = "simulated") -> Evaluation:
    """Return `plan` with the memory and projection of its pools and of the whole."""
    found = evaluate_pools(scenario_of(plan, calibration), plan.pools, plan.options, timing=timing)
    return Evaluation(plan.model_copy(update={"pools": found.pools, "projection": found.whole}), found.phases)


def evaluate_pools(
    scenario: Scenario, decided: tuple[Pool, ...], options: Options, *, timing: Timing = "simulated"
) -> EvaluatedPools:
    """Return pools whose decisions are made with the memory and projection of each, and the projection of the whole."""
    phases = tuple(judge_pool(scenario, pool, options, timing=timing) for pool in decided)
    projections = tuple(project_pool(scenario, pool, phase) for pool, phase in zip(decided, phases, strict=True))
    pools = tuple(
        pool.model_copy(
            update={
                "memory": phase.memory,
                "projection": projection,
                "tables": phase.outcome.coverage.summary if phase.outcome.coverage else None,
            }
        )
        for pool, phase, projection in zip(decided, phases, projections, strict=True)
    )
    whole = projections[0]
    if len(pools) > 1:
        ttft_s = handed_over_ttft_s(scenario, pools, options, phases[1], timing=timing)
        whole = project_disaggregated(scenario, pools, phases, ttft_s)
    return EvaluatedPools(pools, phases, whole)


def judge_pool(scenario: Scenario, pool: Pool, options: Options, *, timing: Timing) -> PhaseOutcome:
    """Return what one pool's phase comes to."""
    in_flight = scenario.workload.concurrency if pool.role in {"decode", "mixed"} else None
    case = PoolCase(scenario, pool.strategy, options, pool.placement, pool.first_rank, in_flight)
    return phase_outcome(case, pool.role, pool.schedule, timing=timing)


def project_pool(scenario: Scenario, pool: Pool, phase: PhaseOutcome, *, clock_share: float = 1.0) -> Projection:
    """Return the projection of one pool by itself.

    `clock_share` is f / fmax where the SMs run at a lower clock; the device's peaks are then those at that clock.
    """
    model, device = scenario.model, scenario.cluster.device
    outcome, schedule = phase.outcome, phase.schedule
    flops = flops_per_token(scenario, pool)
    peak = fastest_peak(device, model, outcome.graph.layout.options.dtypes)
    mfu = phase.computed_tokens_per_s * flops / pool.num_gpus / peak
    mbu = min(outcome.memory_traffic_bytes / (phase.step_s * device.memory_bandwidth_bytes_per_s), 1.0)
    watts = power_w(
        device,
        scenario.calibration.power,
        mfu=computing_share(scenario, pool, phase),
        mbu=mbu,
        is_moe=model.moe is not None,
        clock_share=clock_share,
    )
    share = min(outcome.step_s / phase.step_s, 1.0) if schedule.num_microbatches >= pool.strategy.pp else 1.0
    return Projection(
        throughput_tokens_per_s=phase.throughput_tokens_per_s,
        throughput_tokens_per_s_per_gpu=phase.throughput_tokens_per_s / pool.num_gpus,
        ttft_s=phase.ttft_s,
        tpot_s=phase.tpot_s,
        step_s=phase.step_s,
        model_flops_utilization=mfu,
        exposed_communication_fraction=min(outcome.exposed_fraction * share, 1.0),
        overlap_fraction=min(max(outcome.overlap_fraction, 0.0), 1.0),
        memory_bytes_per_gpu=phase.memory.bytes_by_kind,
        cross_node_bytes_per_token=outcome.cross_node_bytes_per_token,
        power_w_per_gpu=watts,
        tokens_per_joule=phase.throughput_tokens_per_s / (watts * pool.num_gpus),
        provenance=provenance(scenario, (pool,), (outcome,)),
    )


def fastest_peak(device: Device, model: Model, dtypes: DtypePolicy) -> float:
    """Return the peak FLOP/s of a device in the fastest of the formats that a model's products are in.

    MFU is a share of it, whatever the others: products in the faster format go beyond the peak of a slower one, such as
    of experts that are kept in FP32 beside BF16.
    """
    experts = () if model.moe is None else (dtypes.experts,)
    return max(device.peak(each) for each in (dtypes.weights, dtypes.activations, *experts))


def computing_share(scenario: Scenario, pool: Pool, phase: PhaseOutcome) -> float:
    """Return the share of its peak that a GPU computes, what experts' kernels pad their rows with included."""
    device, model, schedule = scenario.cluster.device, scenario.model, phase.schedule
    dtypes = phase.outcome.graph.layout.options.dtypes
    peak = products_peak(device, model, dtypes)
    busy = phase.computed_tokens_per_s * flops_per_token(scenario, pool) / peak
    padded = padding_flops(scenario.engine, model, dtypes, schedule.tokens_per_microbatch * pool.strategy.attn_dp)
    busy += padded * schedule.num_microbatches * pool.strategy.instances / phase.step_s / peak
    return min(busy / pool.num_gpus, 1.0)


def flops_per_token(scenario: Scenario, pool: Pool) -> float:
    """Return the model's FLOPs for each token that a pool computes, at the pool's mean context."""
    schedule = pool.schedule
    total = schedule.tokens_per_microbatch
    prompt_context = (schedule.prompt_tokens + 1) / 2
    context = (schedule.prefill_tokens * prompt_context + schedule.decode_sequences * schedule.context_tokens) / total
    prompts = schedule.prefill_tokens / schedule.prompt_tokens if schedule.prompt_tokens else 0.0
    training = pool.role == "training"
    emitted = 1.0 if training else (schedule.decode_sequences + prompts) / total
    return model_flops_per_token(scenario.model, context_tokens=context, emitted_share=emitted, training=training)


def project_disaggregated(
    scenario: Scenario, pools: tuple[Pool, ...], phases: tuple[PhaseOutcome, ...], ttft_s: float
) -> Projection:
    """Return the projection of a prefill pool and a decode pool that hand requests over.

    Requests in flight stay with the decode pool but for their time to first token (Little's law); of those that arrive
    at a rate the decode pool has as many as decode.
    """
    workload = scenario.workload
    prefill, decode = phases
    assert decode.tpot_s is not None, "a decode pool has a time per output token"
    decode_s = max(workload.output_tokens - 1, 0) * decode.tpot_s
    capacity = prefill.throughput_tokens_per_s / workload.input_tokens
    arriving = workload.request_rate_per_s
    requests_per_s = in_flight(decode) / (ttft_s + decode_s)
    if arriving is not None:
        requests_per_s = min(in_flight(decode) / decode_s if decode_s else arriving, capacity, arriving)
    tokens_per_s = requests_per_s * workload.output_tokens
    gpus = sum(pool.num_gpus for pool in pools)
    busy = (min(requests_per_s / capacity, 1.0), min(tokens_per_s / decode.throughput_tokens_per_s, 1.0))
    parts = [(p.projection, p.num_gpus / gpus, b) for p, b in zip(pools, busy, strict=True) if p.projection]
    idle_w = scenario.cluster.device.idle_power_w
    watts = sum(w * (b * p.power_w_per_gpu + (1 - b) * idle_w) for p, w, b in parts)
    fullest = max((pool.memory for pool in pools if pool.memory), key=lambda memory: memory.total_bytes)
    prompts_per_token = workload.input_tokens / workload.output_tokens
    return Projection(
        throughput_tokens_per_s=tokens_per_s,
        throughput_tokens_per_s_per_gpu=tokens_per_s / gpus,
        ttft_s=ttft_s,
        tpot_s=decode.tpot_s if workload.output_tokens > 1 else None,
        step_s=decode.step_s,
        model_flops_utilization=sum(w * b * p.model_flops_utilization for p, w, b in parts),
        exposed_communication_fraction=sum(w * p.exposed_communication_fraction for p, w, _ in parts),
        overlap_fraction=sum(w * p.overlap_fraction for p, w, _ in parts),
        memory_bytes_per_gpu=fullest.bytes_by_kind,
        cross_node_bytes_per_token=decode.outcome.cross_node_bytes_per_token
        + prefill.outcome.cross_node_bytes_per_token * prompts_per_token,
        power_w_per_gpu=watts,
        tokens_per_joule=tokens_per_s / (watts * gpus),
        provenance=provenance(scenario, pools, tuple(phase.outcome for phase in phases)),
    )


def handed_over_ttft_s(
    scenario: Scenario, pools: tuple[Pool, ...], options: Options, decode: PhaseOutcome, *, timing: Timing
) -> float:
    """Return the time to first token where one pool computes the prompts and another decodes."""
    prefills, decodes = (as_workers(scenario, pool, options, timing=timing) for pool in pools)
    return disaggregated_latency(prefills, decodes, in_flight(decode), apart_of(scenario)).ttft_s


def in_flight(decode: PhaseOutcome) -> int:
    """Return the sequences that a decode pool has in flight."""
    return round(decode.throughput_tokens_per_s * (decode.tpot_s or 0.0))
