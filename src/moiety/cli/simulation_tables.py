"""A simulated plan and its what-ifs, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from moiety.cli.plan_tables import outcome, projection_section
from moiety.cli.serving_load import QUANTILES
from moiety.cli.table import listing, table
from moiety.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from moiety.cli.serving_load import Served
    from moiety.cli.what_if import Answers, Failure
    from moiety.plan import Plan, Projection
    from moiety.projection.project import Evaluation
    from moiety.search.ablation import OptionWorth
    from moiety.search.failure import DegradedPool
    from moiety.search.operation import Interruptions, Price
    from moiety.search.scaling import ScalePoint
    from moiety.sim.timeline import Timeline

_UNCHANGED = 1e-9


def simulation_sections(
    stored: Plan,
    evaluation: Evaluation,
    answers: Answers,
    trace: str,
) -> Iterator[RenderableType]:
    """Yield everything that `moiety simulate` shows, in order."""
    plan = evaluation.plan
    assert plan.projection is not None, "the plan was evaluated"
    names = " + ".join(pool.strategy.name for pool in plan.pools)
    title = f"{plan.name}: {plan.model.name} on {plan.cluster.name}, {names}: {outcome(plan, plan.projection)}"
    yield Text(title, style="bold")
    yield Text(_reproduced(stored, plan))
    yield projection_section(plan)
    yield timeline_section(evaluation)
    if answers.failure is not None:
        yield failure_section(plan, answers.failure)
    if answers.resized is not None:
        yield resized_section(plan, answers.resized)
    if answers.ablation is not None:
        yield ablation_section(answers.ablation)
    if answers.scaling is not None:
        yield scaling_section(answers.scaling)
    if answers.skewed is not None:
        yield skew_section(plan.projection, answers.skewed)
    if answers.price is not None:
        yield price_section(answers.price)
    if answers.interruptions is not None:
        yield interruptions_section(answers.interruptions)
    if answers.serving is not None:
        yield serving_section(answers.serving)
    yield listing("Files", [f"{trace} (open it at ui.perfetto.dev)"])


def _reproduced(stored: Plan, plan: Plan) -> str:
    assert plan.projection is not None, "the plan was evaluated"
    if stored.projection is None:
        return "The file holds no projection to compare with."
    before, now = stored.projection.throughput_tokens_per_s, plan.projection.throughput_tokens_per_s
    if abs(now - before) <= _UNCHANGED * max(now, before):
        return "The simulation gives the projection that the file holds."
    return f"The file holds another projection: {before:,.0f} tokens/s; was it made by another version, or changed?"


def timeline_section(evaluation: Evaluation) -> RenderableType:
    """Return the figures of each pool's step: what is busy, what is exposed, what bounds it."""
    rows: list[tuple[str, ...]] = []
    for pool, phase in zip(evaluation.plan.pools, evaluation.phases, strict=True):
        timeline = phase.outcome.timeline
        if timeline is not None:
            rows.append((pool.role, *_figures(timeline)))
    columns = (
        "pool",
        ">makespan",
        ">critical path",
        ">work",
        ">compute busy",
        ">communication",
        ">exposed",
        ">hidden",
        ">ops",
    )
    return table("Simulated step, mean over the GPUs", columns, rows)


def _figures(timeline: Timeline) -> tuple[str, ...]:
    weight, weights = sum(timeline.lane_weights), timeline.lane_weights

    def share(values: Sequence[float]) -> str:
        mean = sum(value * own for value, own in zip(values, weights, strict=True)) / weight
        part = mean / timeline.makespan_s if timeline.makespan_s else 0.0
        return f"{format_duration(mean)} ({part:.0%})"

    return (
        format_duration(timeline.makespan_s),
        format_duration(timeline.critical_path_s),
        format_duration(timeline.work_s),
        share(timeline.compute_busy_s),
        share(timeline.communication_s),
        share(timeline.exposed_s),
        f"{timeline.overlap_fraction:.0%}",
        f"{len(timeline.steps.tasks):,}",
    )


def serving_section(served: Served) -> RenderableType:
    """Return what requests see: mean and percentiles of their latencies."""
    outcome = served.outcome
    latencies = {
        "time to first token": outcome.ttft,
        "time per output token": outcome.tpot,
        "between tokens": outcome.itl,
        "whole answer": outcome.e2e,
    }
    rows = [
        (name, format_duration(each.mean), *(format_duration(each.quantile(q)) for q in QUANTILES))
        for name, each in latencies.items()
        if each.count
    ]
    rate, good = (each * served.num_groups for each in (outcome.throughput_tokens_per_s, outcome.goodput_per_s))
    title = (
        f"{served.load}: {rate:,.0f} output tokens/s, {good:,.2f} requests/s within the objective "
        f"({outcome.good / max(outcome.finished, 1):.0%}), {outcome.preemptions:,} preemptions; one of "
        f"{served.num_groups:,} attention groups with its share, {outcome.finished:,} requests"
    )
    return table(title, ("", ">mean", *(f">p{round(100 * q)}" for q in QUANTILES)), rows)


def failure_section(plan: Plan, failure: Failure) -> RenderableType:
    """Return what the plan does after the failures, at once and planned anew."""
    own = failure.degradation
    whole = plan.projection.throughput_tokens_per_s if plan.projection else 0.0
    rows = [("before", str(plan.num_gpus), f"{whole:,.0f}", "100.0%", "")]
    said = "; ".join(_degraded_words(pool) for pool in own.pools)
    rows.append(
        ("at once", str(own.alive_gpus), f"{own.throughput_tokens_per_s:,.0f}", f"{own.throughput_share:.1%}", said)
    )
    made = failure.replanned
    if made is None or made.projection is None:
        rows.append(("planned anew", "", "", "", failure.why_not_replanned))
    else:
        rate = made.projection.throughput_tokens_per_s
        names = " + ".join(pool.strategy.name for pool in made.pools)
        rows.append(("planned anew", str(made.num_gpus), f"{rate:,.0f}", f"{rate / whole:.1%}", names))
    return table(f"After {', '.join(own.failures)}", ("", ">GPUs", ">tokens/s", ">of before", "what happens"), rows)


def _degraded_words(pool: DegradedPool) -> str:
    said = f"{pool.role}: {len(pool.lost_ranks)} GPUs lost, {pool.lost_instances} instances stop, "
    said += f"{pool.expert_coverage:.1%} of the experts still have a copy"
    if pool.reloaded_experts:
        size = f"{pool.reload_bytes_per_gpu / 1e9:.1f} GB a GPU at most" + ("" if pool.fits else ", more than fits")
        said += f", {pool.reloaded_experts} experts a layer are loaded again ({size})"
    return said


def resized_section(plan: Plan, resized: Plan) -> RenderableType:
    """Return the plan beside the one made anew on another number of GPUs."""
    rows: list[tuple[str, ...]] = []
    for each in (plan, resized):
        own = each.projection
        assert own is not None, "both were evaluated"
        names = " + ".join(pool.strategy.name for pool in each.pools)
        latency = " / ".join(format_duration(s) if s is not None else "-" for s in (own.ttft_s, own.tpot_s))
        rate, per_gpu = own.throughput_tokens_per_s, own.throughput_tokens_per_s_per_gpu
        rows.append(
            (
                str(each.num_gpus),
                names,
                f"{rate:,.0f}",
                f"{per_gpu:,.0f}",
                latency,
                f"{own.model_flops_utilization:.1%}",
            )
        )
    columns = (">GPUs", "strategy", ">tokens/s", ">per GPU", ">TTFT / TPOT", ">MFU")
    return table("Planned anew on another number of GPUs", columns, rows)


def ablation_section(worth: Sequence[OptionWorth]) -> RenderableType:
    """Return what each option is worth, alone and in company."""
    rows = [
        (
            each.option.replace("_", " "),
            each.setting,
            "" if each.throughput_alone is None else f"{each.throughput_alone - 1:+.1%}",
            f"{each.throughput_without - 1:+.1%}",
            f"{each.memory_without_bytes / 1e9:+.2f}" + ("" if each.fits_without else " (does not fit)"),
        )
        for each in worth
    ]
    columns = ("option", "plan has", ">alone, over none", ">switched, from the plan", ">GB/GPU switched")
    return table("What each option is worth, in tokens/s", columns, rows)


def scaling_section(points: Sequence[ScalePoint]) -> RenderableType:
    """Return strong and weak scaling, and what stops it."""
    rows = [
        (
            each.scaling,
            f"{each.num_gpus:,}",
            each.strategy,
            "" if each.throughput_tokens_per_s is None else f"{each.throughput_tokens_per_s:,.0f}",
            "" if each.efficiency is None else f"{each.efficiency:.0%}",
            "" if each.exposed_communication_fraction is None else f"{each.exposed_communication_fraction:.1%}",
            each.limited_by,
        )
        for each in points
    ]
    columns = ("scaling", ">GPUs", "strategy", ">tokens/s", ">efficiency", ">exposed", "what stops it")
    return table("Scaling: the same load (strong), the same load per GPU (weak)", columns, rows)


def skew_section(planned: Projection, skewed: Projection) -> RenderableType:
    """Return the plan beside itself under other loads of its experts."""
    rows = [
        (
            name,
            f"{each.throughput_tokens_per_s:,.0f}",
            f"{each.throughput_tokens_per_s / planned.throughput_tokens_per_s:.1%}",
            " / ".join(format_duration(s) if s is not None else "-" for s in (each.ttft_s, each.tpot_s)),
            format_duration(each.step_s),
        )
        for name, each in (("as planned", planned), ("skewed", skewed))
    ]
    columns = ("routing", ">tokens/s", ">of planned", ">TTFT / TPOT", ">step")
    return table("Under another law of the experts' loads, in the same places", columns, rows)


def price_section(price: Price) -> RenderableType:
    """Return what the plan costs, in the currency that was meant."""
    rows = [(f"{price.per_gpu_hour:g}", f"{price.per_hour:,.2f}", f"{price.per_million_tokens:.4g}")]
    return table("Price", (">a GPU and hour", ">an hour", ">a million tokens"), rows)


def interruptions_section(found: Interruptions) -> RenderableType:
    """Return the interruptions to expect, and what they cost."""
    rows = [
        (
            f"{found.per_month:.2f}",
            f"{found.repair_hours:g} h",
            f"{found.lost_share:.1%}",
            f"{found.throughput_share:.3%}",
        )
    ]
    columns = (">a month", ">until repaired", ">lost meanwhile", ">throughput left in the mean")
    return table("Interruptions to expect, at the rate that Llama 3's training saw", columns, rows)
