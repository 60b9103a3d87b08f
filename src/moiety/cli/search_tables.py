"""What the search saw, as tables: the ranking, the rules broken, the Pareto front, the plans side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cli.table import table
from moiety.units import format_duration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moiety.plan import Plan, RankedStrategy, SearchSummary

_SHOWN = 10


def ranking_section(search: SearchSummary, claimed: str | None) -> RenderableType:
    """Return the best strategies, the chosen one and the claimed one, each with why it was not chosen."""
    lines = [
        line
        for line in search.ranking
        if line.rank <= _SHOWN or not line.why_not or (claimed is not None and line.strategy == claimed)
    ]
    rows = [
        (
            str(line.rank),
            line.strategy + (", fully sharded" if line.fully_sharded else ""),
            f"{'' if line.simulated else '~'}{line.throughput_tokens_per_s_per_gpu:,.0f}",
            _latency(line),
            "yes" if line.meets_slo else "no",
            (line.why_not or "chosen") + (" (the claimed strategy)" if line.strategy == claimed else ""),
        )
        for line in lines
    ]
    title = (
        f"Ranking: {len(lines)} of {len(search.ranking)} ({search.num_enumerated} enumerated, {search.num_legal} legal)"
    )
    columns = (">#", "strategy", ">tokens/s/GPU", "latency", "SLO", "why not")
    notes: list[str] = []
    if not all(line.simulated for line in lines):
        notes.append("~ timed in closed form, which takes all transfers for hidden that could be")
    if claimed is not None and all(line.strategy != claimed for line in search.ranking):
        notes.append(f"{claimed}, the claimed strategy, is not among them: it breaks a rule or does not fit.")
    return table(title, columns, rows, notes=notes)


def _latency(line: RankedStrategy) -> str:
    parts = [
        f"{word} {format_duration(seconds)}"
        for seconds, word in ((line.ttft_s, "TTFT"), (line.tpot_s, "TPOT"))
        if seconds is not None
    ]
    return ", ".join(parts) or f"step {format_duration(line.step_s)}"


def rejected_section(search: SearchSummary) -> RenderableType:
    """Return the rules that kept strategies out, with an example of each."""
    rows = [(each.rule, str(each.num_strategies), f"{each.example}: {each.reason}") for each in search.rejected]
    return table("Not possible", ("rule", ">strategies", "for example"), rows)


def pareto_section(plan: Plan) -> RenderableType:
    """Return the points that no other beats in throughput and latency at once."""
    assert plan.search is not None, "the caller has looked"
    unit, latency = {
        "prefill": ("tokens in flight", "time to first token"),
        "training": ("tokens in flight", "step"),
    }.get(plan.workload.kind, ("requests in flight", "time per output token"))
    rows = [
        (
            each.strategy,
            f"{each.load:,}",
            f"{each.throughput_tokens_per_s_per_gpu:,.0f}",
            format_duration(each.latency_s),
        )
        for each in plan.search.pareto_front
    ]
    columns = ("strategy", f">{unit}", ">tokens/s/GPU", f">{latency}")
    return table("Pareto front of throughput against latency", columns, rows)


def comparison_section(plan: Plan) -> RenderableType:
    """Return the variants of the plan side by side, relative to the first."""
    first = plan.comparison[0].projection
    rows: list[tuple[str, ...]] = []
    for each in plan.comparison:
        own = each.projection
        latency = own.tpot_s if own.tpot_s is not None else own.ttft_s if own.ttft_s is not None else own.step_s
        rows.append(
            (
                each.name,
                each.strategy,
                f"{own.throughput_tokens_per_s:,.0f}",
                f"{own.throughput_tokens_per_s / first.throughput_tokens_per_s:.2f}x",
                format_duration(latency),
                f"{own.model_flops_utilization:.1%}",
                f"{own.exposed_communication_fraction:.1%}",
                f"{sum(own.memory_bytes_per_gpu.values()) / 1e9:.1f}",
                each.changed,
            )
        )
    latency = {"prefill": "TTFT", "training": "step"}.get(plan.workload.kind, "TPOT")
    columns = ("plan", "strategy", ">tokens/s", ">gain", f">{latency}", ">MFU", ">exposed", ">GB/GPU", "what it is")
    return table("Side by side", columns, rows)
