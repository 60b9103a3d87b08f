"""The main job: from a scenario to a plan with its projection, its search and the variants beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moiety.plan import Plan, Pool, Provenance, Schedule, Variant
from moiety.projection.place import placed_again, settled
from moiety.projection.project import Evaluation, evaluate
from moiety.projection.scenario import scenario_of
from moiety.projection.schedule import schedules
from moiety.search.judge import Judged, judge
from moiety.search.options import baseline_options, original_options
from moiety.search.search import search
from moiety.strategy.legality import broken_rules, divisors
from moiety.strategy.strategy import Strategy

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.plan import Options
    from moiety.projection.scenario import Scenario
    from moiety.search.search import Progress

_BASELINE_MICROBATCHES = 8
_BASELINE_TOKENS = 2048


def make_plan(
    scenario: Scenario,
    options: Options,
    *,
    name: str,
    version: str,
    pinned: Strategy | None = None,
    tune: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Return the best (or the pinned) plan, every layer of its step simulated, with the variants it is compared with.

    `tune` lets the search turn two-batch overlap off where it does not pay. Raises InputError where nothing works.
    """
    result = search(scenario, options, pinned=pinned, tune=tune, progress=progress)
    pools = settled(scenario, result.chosen.pools, result.chosen.options)
    plan = assemble(scenario, pools, result.chosen.options, name, version)
    evaluation = evaluate(plan, scenario.calibration)
    comparison = compare(evaluation.plan, scenario.calibration)
    return replace(
        evaluation, plan=evaluation.plan.model_copy(update={"comparison": comparison, "search": result.summary})
    )


def assemble(scenario: Scenario, pools: tuple[Pool, ...], options: Options, name: str, version: str) -> Plan:
    """Return a plan of decisions only, to be evaluated."""
    return Plan(
        name=name,
        model=scenario.model,
        cluster=scenario.cluster,
        workload=scenario.workload,
        engine=scenario.engine,
        options=options,
        expert_shares=scenario.expert_shares,
        pools=tuple(pool.model_copy(update={"projection": None, "memory": None, "tables": None}) for pool in pools),
        provenance=Provenance(
            moiety_version=version,
            calibration=scenario.calibration.name,
            tables=scenario.calibration.tables.source if scenario.calibration.tables else None,
        ),
        calibration=scenario.calibration if scenario.carries_calibration else None,
    )


def with_options(plan: Plan, options: Options, calibration: Calibration) -> Evaluation:
    """Return the plan with other options, its steps cut anew for them, evaluated."""
    scenario = scenario_of(plan, calibration)
    pools: list[Pool] = []
    for pool in plan.pools:
        in_flight = None
        if pool.role in {"decode", "mixed"}:
            groups = pool.strategy.num_groups
            in_flight = pool.schedule.decode_sequences * pool.schedule.num_microbatches * groups
        cut = schedules(plan.workload, pool.role, pool.strategy, options, in_flight)
        schedule = cut[0] if cut and options.two_batch_overlap != plan.options.two_batch_overlap else pool.schedule
        placement = placed_again(scenario, plan.pools, pool.strategy, options, pool.first_rank)
        pools.append(pool.model_copy(update={"schedule": schedule, "placement": placement}))
    return evaluate(assemble(scenario, tuple(pools), options, plan.name, plan.provenance.moiety_version), calibration)


def compare(plan: Plan, calibration: Calibration) -> tuple[Variant, ...]:
    """Return the baseline, the plan's strategy with the original options, and the plan itself, side by side.

    Where the plan places its experts otherwise than in order, the same with them in order stands beside it.
    """
    found: list[Variant] = []
    baseline = baseline_plan(plan, calibration)
    if baseline is not None:
        found.append(variant("baseline", "tensor and pipeline parallelism, every option off", baseline))
    original = with_options(plan, original_options(plan.options), calibration).plan
    found.append(
        variant("original", "the plan's strategy with overlap and flash attention, the other options off", original)
    )
    if plan.options.placement != "linear":
        linear = with_options(plan, plan.options.model_copy(update={"placement": "linear"}), calibration).plan
        found.append(variant("linear-placement", "the plan with its experts in order", linear))
    found.append(variant("enhanced", "the plan", plan))
    return tuple(found)


def variant(name: str, changed: str, plan: Plan) -> Variant:
    """Return an evaluated plan as one line of a comparison."""
    assert plan.projection is not None, "variants are evaluated"
    strategy = " + ".join(pool.strategy.name for pool in plan.pools)
    return Variant(name=name, strategy=strategy, changed=changed, projection=plan.projection)


def baseline_plan(plan: Plan, calibration: Calibration) -> Plan | None:
    """Return what is done without expert parallelism: TP in a node, pipeline stages over nodes, nothing overlapped.

    Prompts and training tokens go in 8 micro-batches of 2,048 tokens. Where that is not legal or does not fit, the
    pipeline is shortened and instances are added; None where nothing of the kind works.
    """
    scenario = scenario_of(plan, calibration)
    options = baseline_options(plan.options)
    gpus, kind = plan.cluster.num_gpus, plan.workload.kind
    for tp in sorted((d for d in divisors(plan.cluster.gpus_per_node)), reverse=True):
        if gpus % tp:
            continue
        for pp in sorted(divisors(gpus // tp), reverse=True):
            strategy = Strategy(tp=tp, pp=pp, etp=tp, instances=gpus // (tp * pp))
            if broken_rules(plan.model, strategy, options.redundant_experts):
                continue
            judged = judge(scenario, strategy, options, tune=False, timing="estimated")
            if not isinstance(judged, Judged):
                continue
            pool = judged.pools[0]
            if kind in {"prefill", "training"} and pp > 1:
                tokens = max(_BASELINE_TOKENS, plan.workload.input_tokens if kind == "training" else 0)
                schedule = Schedule(
                    num_microbatches=_BASELINE_MICROBATCHES,
                    prefill_tokens=tokens,
                    prompt_tokens=plan.workload.input_tokens,
                    decode_sequences=0,
                    context_tokens=0,
                )
                pool = pool.model_copy(update={"schedule": schedule})
            baseline = assemble(scenario, (pool,), options, plan.name, plan.provenance.moiety_version)
            return evaluate(baseline, calibration).plan
    return None


def replan(plan: Plan, calibration: Calibration, scenario: Scenario | None = None) -> Evaluation:
    """Return the plan made anew for another scenario of the same kind, without comparison."""
    scenario = scenario or scenario_of(plan, calibration)
    result = search(scenario, plan.options.model_copy(update={"two_batch_overlap": True}))
    version = plan.provenance.moiety_version
    pools = settled(scenario, result.chosen.pools, result.chosen.options)
    return evaluate(assemble(scenario, pools, result.chosen.options, plan.name, version), calibration)
