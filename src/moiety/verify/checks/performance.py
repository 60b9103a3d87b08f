"""Performance: no step is faster than the hardware allows, and the figures of a projection follow from each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.strategy.stages import held_layers
from moiety.verify.closed_form import (
    dense_weights,
    highest_peak,
    pool_flops_per_token,
    read_cache_bytes,
    router_weights,
)
from moiety.verify.findings import Finding, judged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moiety.cluster.cluster import Cluster
    from moiety.plan import Plan, Pool, Projection
    from moiety.verify.inspection import Inspection

_SAME = 1e-6
"""Relative difference up to which two figures are the same number."""
_FLOPS_TOLERANCE = 0.02
"""Between two ways to count a token's FLOPs: with and without norms and biases."""


def speed_of_light(inspection: Inspection) -> Iterator[Finding]:
    """Check that a step is not shorter than its FLOPs over the peak, its bytes or its traffic over the bandwidth."""
    plan = inspection.plan
    for pool in plan.pools:
        projection, subject = pool.projection, inspection.name_of(pool)
        if projection is None:
            yield judged("speed-of-light", subject, "the pool has no projection", holds=False)
            continue
        groups = pool.strategy.attn_dp * pool.strategy.instances // pool.strategy.cp
        tokens = (
            pool.schedule.num_microbatches * (pool.schedule.prefill_tokens + pool.schedule.decode_sequences) * groups
        )
        peak = max(plan.cluster.device.peak_flops_per_s.values()) * pool.num_gpus
        crossing = projection.cross_node_bytes_per_token
        bounds = {
            "FLOPs over peak": tokens * pool_flops_per_token(plan, pool) / peak,
            "weights and cache over memory bandwidth": _least_bytes(plan, pool)
            / plan.cluster.device.memory_bandwidth_bytes_per_s,
            "bytes between nodes over the network": tokens * crossing / (pool.num_gpus * _network_rate(plan.cluster)),
        }
        for what, bound in bounds.items():
            yield judged(
                "speed-of-light",
                f"{subject}, {what}",
                f"a step takes {projection.step_s * 1e3:.3f} ms, at least {bound * 1e3:.3f} ms ({what})",
                holds=projection.step_s >= bound * (1 - _SAME),
                expected=bound,
                actual=projection.step_s,
            )


def figures_agree(inspection: Inspection) -> Iterator[Finding]:
    """Check that throughput, per-GPU throughput, tokens per joule, utilisation and step follow from each other."""
    plan = inspection.plan
    for pool in plan.pools:
        if pool.projection is not None:
            yield from _agree(inspection, inspection.name_of(pool), pool.projection, pool.num_gpus)
            yield from _rate(inspection, pool, pool.projection)
    if plan.projection is None:
        yield judged("figures-agree", "the plan", "the plan has no projection", holds=False)
        return
    yield from _agree(inspection, "the plan", plan.projection, sum(pool.num_gpus for pool in plan.pools))
    if len(plan.pools) == 1:
        same = plan.projection == plan.pools[0].projection
        yield judged("figures-agree", "the plan", "the only pool's projection is the plan's", holds=same)
    for variant in plan.comparison:
        each, whole = variant.projection.throughput_tokens_per_s_per_gpu, variant.projection.throughput_tokens_per_s
        gpus = round(whole / each) if each else 0
        yield judged(
            "figures-agree",
            f"variant {variant.name}, GPUs",
            f"{whole:,.0f} tokens/s at {each:,.1f} per GPU are {gpus} GPUs; the cluster has {plan.cluster.num_gpus}",
            holds=0 < gpus <= plan.cluster.num_gpus,
        )
        yield from _agree(inspection, f"variant {variant.name}", variant.projection, gpus)


def _agree(inspection: Inspection, subject: str, figures: Projection, gpus: int) -> Iterator[Finding]:
    whole, each = figures.throughput_tokens_per_s, figures.throughput_tokens_per_s_per_gpu
    yield judged(
        "figures-agree",
        f"{subject}, per GPU",
        f"{each:,.3f} tokens/s per GPU x {gpus} GPUs = {each * gpus:,.1f}; stated {whole:,.1f} tokens/s",
        holds=_same(each * gpus, whole),
        expected=each * gpus,
        actual=whole,
    )
    device = inspection.plan.cluster.device
    watts = figures.power_w_per_gpu
    yield judged(
        "power-within-limits",
        subject,
        f"{watts:.0f} W per GPU, between {device.idle_power_w:.0f} W idle and {device.max_power_w:.0f} W at most",
        holds=device.idle_power_w * (1 - _SAME) <= watts <= device.max_power_w * (1 + _SAME),
        actual=watts,
    )
    joules = whole / (watts * gpus) if watts else 0.0
    yield judged(
        "figures-agree",
        f"{subject}, energy",
        f"{whole:,.1f} tokens/s / ({watts:.1f} W x {gpus}) = {joules:.4f} tokens per joule; stated "
        f"{figures.tokens_per_joule:.4f}",
        holds=_same(joules, figures.tokens_per_joule),
        expected=joules,
        actual=figures.tokens_per_joule,
    )
    shares = (figures.model_flops_utilization, figures.exposed_communication_fraction, figures.overlap_fraction)
    yield judged(
        "shares-within-one",
        subject,
        f"utilisation {shares[0]:.1%}, exposed communication {shares[1]:.1%}, overlap {shares[2]:.1%}",
        holds=all(0 <= share <= 1 for share in shares),
    )


def _rate(inspection: Inspection, pool: Pool, figures: Projection) -> Iterator[Finding]:
    """Yield the comparisons of a pool's rate with its step and its utilisation."""
    plan, subject, schedule = inspection.plan, inspection.name_of(pool), pool.schedule
    groups = pool.strategy.attn_dp * pool.strategy.instances // pool.strategy.cp
    workload, computed = plan.workload, 1.0
    in_flight = schedule.num_microbatches * schedule.decode_sequences * groups
    if workload.concurrency is not None:  # groups of the same size have room for a few more than there are
        in_flight = min(in_flight, workload.concurrency)
    if pool.role == "mixed":
        request = (figures.ttft_s or 0.0) + max(workload.output_tokens - 1, 0) * (figures.tpot_s or 0.0)
        expected = in_flight * workload.output_tokens / request if request else 0.0
        formula = f"{in_flight:,} requests in flight x {workload.output_tokens} tokens / {request:.3f} s"
        if workload.request_rate_per_s is not None:
            expected = min(expected, workload.request_rate_per_s * workload.output_tokens)
            formula += f", at most {workload.request_rate_per_s:g} requests/s that arrive,"
        computed = 1 + workload.input_tokens / workload.output_tokens
    else:
        decodes = pool.role == "decode"
        tokens = in_flight if decodes else schedule.num_microbatches * schedule.prefill_tokens * groups
        expected = tokens / figures.step_s if figures.step_s else 0.0
        formula = f"{tokens:,} tokens / {figures.step_s:.4f} s"
    yield judged(
        "figures-agree",
        f"{subject}, rate",
        f"{formula} = {expected:,.1f} tokens/s; stated {figures.throughput_tokens_per_s:,.1f}",
        holds=_same(expected, figures.throughput_tokens_per_s),
        expected=expected,
        actual=figures.throughput_tokens_per_s,
    )
    peak = highest_peak(plan)
    needed = pool_flops_per_token(plan, pool)
    used = figures.throughput_tokens_per_s * computed * needed / (peak * pool.num_gpus)
    yield judged(
        "utilization-agrees",
        subject,
        f"{figures.throughput_tokens_per_s * computed:,.0f} tokens/s x {needed / 1e9:.2f} GFLOP / ({pool.num_gpus} x "
        f"{peak / 1e12:g} TFLOPS) = {used:.2%}; stated {figures.model_flops_utilization:.2%}",
        holds=abs(used - figures.model_flops_utilization) <= _FLOPS_TOLERANCE * max(used, 1e-9) and used <= 1,
        expected=used,
        actual=figures.model_flops_utilization,
    )


def objective(inspection: Inspection) -> Iterator[Finding]:
    """Check that the workload's latencies are kept; a miss is a warning, the plan may still be the best there is."""
    slo, figures = inspection.plan.workload.slo, inspection.plan.projection
    if figures is None:
        return
    for what, limit, reached in (
        ("time to first token", slo.ttft_s, figures.ttft_s),
        ("time per output token", slo.tpot_s, figures.tpot_s),
    ):
        if limit is None or reached is None:
            continue
        yield judged(
            "objective",
            what,
            f"{reached * 1e3:,.1f} ms, at most {limit * 1e3:,.1f} ms asked for",
            holds=reached <= limit,
            otherwise="warning",
            expected=limit,
            actual=reached,
        )


def _network_rate(cluster: Cluster) -> float:
    """Return the bytes per second, one way, that each GPU has on the fastest tier beyond the first."""
    outer = cluster.tiers[1:] or cluster.tiers
    return max(
        tier.bandwidth_bytes_per_s / (cluster.gpus_per_node if tier.per == "node" else 1) / tier.oversubscription
        for tier in outer
    )


def _least_bytes(plan: Plan, pool: Pool) -> float:
    """Return the bytes that a GPU of the lightest stage must read in a step: dense weights, and in decode its cache."""
    model, strategy, schedule = plan.model, pool.strategy, pool.schedule
    sizes: list[float] = []
    for stage in held_layers(model.num_layers, strategy.pp, plan.options.virtual_stages):
        blocks = [model.blocks[model.layer_blocks[layer]] for layer in stage]
        size = (
            sum(dense_weights(b, model.hidden_size, strategy.tp) for b in blocks)
            * BYTES_PER_ELEMENT[plan.options.dtypes.weights]
        )
        size += (
            sum(router_weights(b, model.hidden_size) for b in blocks)
            * BYTES_PER_ELEMENT[plan.options.dtypes.activations]
        )
        sequences = schedule.decode_sequences * schedule.num_microbatches
        if sequences:
            context = schedule.context_tokens * sequences
            size += sum(read_cache_bytes(b, strategy.tp, context, sequences, plan.options.dtypes) for b in blocks)
        sizes.append(size)
    return min(sizes)


def _same(first: float, second: float) -> bool:
    return abs(first - second) <= _SAME * max(abs(first), abs(second), 1e-300)
