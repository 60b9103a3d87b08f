"""A finished plan as tables: what was chosen, what it should do, and what fills the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from moiety.cli.finding_tables import audit_section, finding_section
from moiety.cli.placement_tables import division_lines, placement_section, routing_section
from moiety.cli.search_tables import comparison_section, pareto_section, ranking_section, rejected_section
from moiety.cli.table import listing, pairs, table
from moiety.units import format_duration, format_si

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from moiety.plan import Plan, Pool, Projection, TableCoverage
    from moiety.verify.findings import Verification

_UNITS = {
    "throughput_tokens_per_s": "tokens/s",
    "throughput_tokens_per_s_per_gpu": "tokens/s",
    "power_w_per_gpu": "W",
}
_SAID = {
    "throughput_tokens_per_s": "throughput",
    "throughput_tokens_per_s_per_gpu": "throughput per GPU",
    "ttft_s": "time to first token",
    "tpot_s": "time per output token",
    "step_s": "step",
    "model_flops_utilization": "model FLOPs utilization",
    "exposed_communication_fraction": "exposed communication",
    "overlap_fraction": "communication hidden",
    "cross_node_bytes_per_token": "cross-node bytes per token",
    "power_w_per_gpu": "power per GPU",
    "tokens_per_joule": "tokens per joule",
}


def plan_sections(plan: Plan, verification: Verification, paths: Sequence[str]) -> Iterator[RenderableType]:
    """Yield everything that `moiety plan` shows, in order."""
    yield scenario_section(plan)
    yield Text(headline(plan), style="bold")
    yield pools_section(plan)
    yield options_line(plan)
    yield memory_section(plan)
    yield projection_section(plan)
    if plan.comparison:
        yield comparison_section(plan)
    if plan.search is not None:
        claimed = verification.audit.strategy if verification.audit else None
        yield ranking_section(plan.search, claimed)
        if plan.search.rejected:
            yield rejected_section(plan.search)
        if plan.search.pareto_front:
            yield pareto_section(plan)
    yield from routing_section(plan)
    yield from placement_section(plan)
    if plan.cluster.assumptions or plan.model.warnings:
        warnings = [f"model: {each}" for each in plan.model.warnings]
        yield listing("Assumed, not known", [*warnings, *(f"cluster: {each}" for each in plan.cluster.assumptions)])
    yield finding_section(verification)
    if verification.audit is not None:
        yield audit_section(verification.audit, paths[0] if paths else "PLAN")
    yield listing("Files", paths)


def headline(plan: Plan) -> str:
    """Return in one or two sentences what was chosen, why, and what it should do."""
    name = " + ".join(f"{p.role} {p.strategy.name}" if len(plan.pools) > 1 else p.strategy.name for p in plan.pools)
    said = f"{name}: "
    if plan.projection is not None:
        said += outcome(plan, plan.projection)
    if plan.search is None:
        return said
    search = plan.search
    if search.chosen_by == "user":
        rank = next((line.rank for line in search.ranking if not line.why_not), None)
        return f"{said}. Asked for; number {rank} of {len(search.ranking)} strategies that work."
    best = "the best under the objective" if _has_objective(plan) else "the fastest"
    return f"{said}. Chosen as {best} of {search.num_fitting} strategies that fit ({search.num_legal} legal)."


def options_line(plan: Plan) -> RenderableType:
    """Return the plan's options in words: what is on, what is off, and the number formats."""
    switches = {name: value for name, value in plan.options if isinstance(value, bool)}
    settings = {name: value for name, value in plan.options if isinstance(value, (str, int)) and name not in switches}
    formats = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in plan.options.dtypes)
    return pairs(
        "Options",
        [
            ("on", ", ".join(name.replace("_", " ") for name, value in switches.items() if value) or "none"),
            ("off", ", ".join(name.replace("_", " ") for name, value in switches.items() if not value) or "none"),
            ("set", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())),
            ("formats", formats),
        ],
    )


def _has_objective(plan: Plan) -> bool:
    return plan.workload.slo.ttft_s is not None or plan.workload.slo.tpot_s is not None


def outcome(plan: Plan, projection: Projection) -> str:
    """Return throughput and latency in a few words."""
    rate, per_gpu = projection.throughput_tokens_per_s, projection.throughput_tokens_per_s_per_gpu
    parts = [f"{rate:,.0f} {throughput_word(plan)} ({per_gpu:,.0f} per GPU)"]
    for seconds, word in ((projection.ttft_s, "TTFT"), (projection.tpot_s, "TPOT")):
        if seconds is not None:
            parts.append(f"{word} {format_duration(seconds)}")
    return ", ".join(parts)


def throughput_word(plan: Plan) -> str:
    """Return what the throughput counts."""
    return {"prefill": "prompt tokens/s", "training": "trained tokens/s"}.get(plan.workload.kind, "output tokens/s")


def scenario_section(plan: Plan) -> RenderableType:
    """Return what the plan is for."""
    held = ", held by the plan" if plan.calibration is not None else ""
    rows = [
        ("model", _model_words(plan)),
        ("cluster", _cluster_words(plan)),
        ("workload", _workload_words(plan)),
        ("engine", f"{plan.engine}; constants {plan.provenance.calibration}{held}"),
    ]
    if plan.provenance.tables is not None:
        rows.append(("measured", plan.provenance.tables.name))
        rows += [(f"in {pool.role}", _coverage_words(pool.tables)) for pool in plan.pools if pool.tables is not None]
    return pairs(f"Plan {plan.name}", rows)


def _coverage_words(tables: TableCoverage) -> str:
    said = f"{tables.covered_ops} of {tables.ops} kernels and transfers from tables, "
    said += f"{tables.covered_seconds_share:.0%} of their time"
    return f"{said}; by law: {', '.join(tables.by_law)}" if tables.by_law else said


def _model_words(plan: Plan) -> str:
    model = plan.model
    size = f"{model.num_parameters / 1e9:,.1f} B parameters, {model.num_active_parameters / 1e9:,.1f} B active"
    moe = model.moe
    if moe is None:
        return f"{model.name}: {size}; {model.num_layers} layers, dense"
    shared = ", shared expert" if moe.shared_intermediate_size else ""
    dense = f" ({model.num_layers - model.num_moe_layers} dense)" if model.num_moe_layers < model.num_layers else ""
    return f"{model.name}: {size}; {model.num_layers} layers{dense}, {moe.num_experts} experts, top-{moe.top_k}{shared}"


def _cluster_words(plan: Plan) -> str:
    cluster, device = plan.cluster, plan.cluster.device
    links = ", ".join(
        f"{tier.name} {format_si(tier.bandwidth_bytes_per_s, 'B/s')} one way per {tier.per}" for tier in cluster.tiers
    )
    nodes = f"{cluster.num_nodes} node{'s' if cluster.num_nodes > 1 else ''} x {cluster.gpus_per_node} {device.name}"
    return f"{cluster.name}: {cluster.num_gpus} GPUs, {nodes} of {format_si(device.memory_bytes, 'B')}; {links}"


def _workload_words(plan: Plan) -> str:
    work = plan.workload
    lengths = f"{work.input_tokens:,} tokens in" + (f", {work.output_tokens:,} out" if work.output_tokens else "")
    if work.tokens_in_flight:
        load = f"{work.tokens_in_flight:,} tokens in flight"
    elif work.concurrency:
        load = f"{work.concurrency:,} requests in flight"
    else:
        load = f"{work.request_rate_per_s:g} requests/s"
    limits = [
        f"{word} <= {format_duration(seconds)}"
        for seconds, word in ((work.slo.ttft_s, "TTFT"), (work.slo.tpot_s, "TPOT"))
        if seconds is not None
    ]
    return f"{work.name}: {work.kind}, {lengths}, {load}" + (f"; {', '.join(limits)}" if limits else "")


def pools_section(plan: Plan) -> RenderableType:
    """Return the pools with the degrees of their strategies, and how the modules fall on the GPUs."""
    columns = ["pool", ">GPUs", "strategy", ">TP", ">attn DP", ">EP", ">expert TP", ">PP", ">instances", "step"]
    return table("Strategy", columns, [_pool_row(pool) for pool in plan.pools], notes=list(division_lines(plan)))


def _pool_row(pool: Pool) -> tuple[str, ...]:
    own, schedule = pool.strategy, pool.schedule
    parts = [f"{schedule.prefill_tokens:,} prompt tokens"] if schedule.prefill_tokens else []
    parts += [f"{schedule.decode_sequences:,} sequences"] if schedule.decode_sequences else []
    step = " + ".join(parts) + " a group"
    if schedule.num_microbatches > 1:
        step = f"{schedule.num_microbatches} x ({step})"
    degrees = (own.tp, own.attn_dp, own.ep, own.etp, own.pp, own.instances)
    return (pool.role, str(pool.num_gpus), own.name, *(str(each) for each in degrees), step)


def memory_section(plan: Plan) -> RenderableType:
    """Return the memory of each pool's fullest GPU by kind, beside its capacity."""
    plans = [pool.memory for pool in plan.pools if pool.memory is not None]
    kinds = dict.fromkeys(kind for each in plans for kind in each.bytes_by_kind)
    rows: list[tuple[str, ...]] = []
    for kind in kinds:
        cells: list[str] = []
        for each in plans:
            size = each.bytes_by_kind.get(kind, 0)
            cells += [f"{size / 1e9:.2f}", f"{size / each.capacity_bytes:.1%}"]
        rows.append((kind.replace("_", " "), *cells))
    for word, sizes in (
        ("total", [each.total_bytes for each in plans]),
        ("free", [each.capacity_bytes - each.total_bytes for each in plans]),
        ("capacity", [each.capacity_bytes for each in plans]),
    ):
        cells = []
        for each, size in zip(plans, sizes, strict=True):
            cells += [f"{size / 1e9:.2f}", f"{size / each.capacity_bytes:.1%}"]
        rows.append((word, *cells))
    columns = ["memory of the fullest GPU"]
    for pool in plan.pools:
        columns += [f">{pool.role} GB", ">share"]
    return table("Memory per GPU", columns, rows)


def projection_section(plan: Plan) -> RenderableType:
    """Return the projection, each figure with what it rests on."""
    projection = plan.projection
    assert projection is not None, "plans that are shown are evaluated"
    rows: list[tuple[str, str, str]] = []
    for field, word in _SAID.items():
        value = getattr(projection, field)
        if value is not None:
            rows.append((word, shown(field, value), projection.provenance.get(field, "")))
    return table("Projection", ("quantity", ">value", "rests on"), rows)


def shown(field: str, value: float) -> str:
    """Return a figure of a projection in the unit that people read."""
    if field.endswith("_s") and field not in _UNITS:
        return format_duration(value)
    if field.endswith(("_fraction", "_utilization")):
        return f"{value:.1%}"
    if field == "cross_node_bytes_per_token":
        return format_si(value, "B")
    if field == "tokens_per_joule":
        return f"{value:.3g}"
    return f"{value:,.0f} {_UNITS.get(field, '')}".rstrip()
