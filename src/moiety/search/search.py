"""The search: every legal strategy costed, the best simulated, ranked under the objective; why not, for the rest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from moiety.errors import InputError
from moiety.plan import RankedStrategy, RejectedRule, SearchSummary
from moiety.search.disaggregation import disaggregated
from moiety.search.fit import smallest_fitting_gpus
from moiety.search.judge import Judged, Refused, judge
from moiety.search.pareto import latency_s, pareto_front
from moiety.strategy.enumeration import enumerate_strategies
from moiety.strategy.legality import broken_rules
from moiety.strategy.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.plan import Options
    from moiety.projection.scenario import Scenario

    Progress = Callable[[int, int], None]

_SIMULATED = 24


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The chosen strategy and what the search saw."""

    chosen: Judged
    summary: SearchSummary


def search(
    scenario: Scenario,
    options: Options,
    *,
    pinned: Strategy | None = None,
    tune: bool = True,
    progress: Progress | None = None,
) -> SearchResult:
    """Return the best strategy for a scenario, or `pinned` with its place among the others.

    Every strategy of all the cluster's GPUs is checked against the rules; the legal ones are timed in closed form with
    the schedule and options that serve them best, and the best of them (and the pinned one) again by simulation.
    Raises InputError where nothing is legal, or fits, or keeps up; it then names the smallest number of GPUs that would.
    """
    kind = scenario.workload.kind
    candidates = list(enumerate_strategies(scenario.model, scenario.cluster.num_gpus, options.redundant_experts))
    legal = [candidate.strategy for candidate in candidates if candidate.is_legal]
    rejected: Counter[str] = Counter()
    examples: dict[str, tuple[str, str]] = {}

    def reject(rule: str, strategy: str, reason: str) -> None:
        rejected[rule] += 1
        examples.setdefault(rule, (strategy, reason))

    for candidate in candidates:
        for broken in candidate.broken[:1]:
            reject(broken.rule, candidate.strategy.name, broken.reason)
    judged: list[Judged] = []
    for index, strategy in enumerate(legal):
        result = judge(scenario, strategy, options, kind, tune=tune, timing="estimated")
        if isinstance(result, Refused):
            reject(result.rule, strategy.name, result.reason)
        else:
            judged.append(result)
        if progress and index % 16 == 0:
            progress(index, len(legal))
    num_fitting = len(judged)
    if kind == "mixed" and judged:
        judged += disaggregated(scenario, options, max(judged, key=lambda each: standing(scenario, each)))
    judged.sort(key=lambda each: standing(scenario, each), reverse=True)
    ranked = [_simulated(scenario, each, options, tune=tune) for each in judged[:_SIMULATED]]
    ranked.sort(key=lambda each: standing(scenario, each), reverse=True)
    ranked += judged[_SIMULATED:]
    if progress:
        progress(len(legal), len(legal))
    if pinned is not None:
        chosen = _pinned(scenario, options, pinned, tune=tune)
        ranked = _with_pinned(ranked, chosen, scenario)
    elif ranked:
        chosen = ranked[0]
    else:
        raise _nothing_fits(scenario, options, rejected, examples)
    summary = SearchSummary(
        num_enumerated=len(candidates),
        num_legal=len(legal),
        num_fitting=num_fitting,
        ranking=_ranking(scenario, ranked, chosen),
        pareto_front=pareto_front(scenario, ranked, options, tune=tune),
        rejected=tuple(
            RejectedRule(rule=rule, num_strategies=count, example=examples[rule][0], reason=examples[rule][1])
            for rule, count in sorted(rejected.items())
        ),
        chosen_by="search" if pinned is None else "user",
    )
    return SearchResult(chosen, summary)


def standing(scenario: Scenario, judged: Judged) -> tuple[float, float, str]:
    """Return what ranks a strategy, better when larger: how far it misses the objective, throughput, then its name."""
    return (-missed_share(scenario, judged), judged.projection.throughput_tokens_per_s, judged.name)


def missed_share(scenario: Scenario, judged: Judged) -> float:
    """Return by what share latencies exceed the objective, added up; 0 where it is met."""
    slo, projection = scenario.workload.slo, judged.projection
    missed = 0.0
    for limit, value in ((slo.ttft_s, projection.ttft_s), (slo.tpot_s, projection.tpot_s)):
        if limit is not None and value is not None:
            missed += max(value / limit - 1, 0.0)
    return missed


def _simulated(scenario: Scenario, judged: Judged, options: Options, *, tune: bool) -> Judged:
    """Return the strategy judged again with its layers simulated."""
    if len(judged.pools) > 1:
        return judged
    pool = judged.pools[0]
    again = judge(scenario, pool.strategy, options, pool.role, tune=tune, timing="folded")
    return again if isinstance(again, Judged) else judged


def _pinned(scenario: Scenario, options: Options, pinned: Strategy, *, tune: bool) -> Judged:
    broken = broken_rules(scenario.model, pinned, options.redundant_experts)
    if broken:
        raise InputError(
            f"breaks the rule {broken[0].rule}: {broken[0].reason}", field="strategy", value=pinned.name
        )
    result = judge(scenario, pinned, options, scenario.workload.kind, tune=tune, timing="folded")
    if isinstance(result, Refused):
        raise InputError(
            f"breaks the rule {result.rule}: {result.reason}",
            field="strategy",
            value=pinned.name,
            remedy="leave --strategy out to see what works",
        )
    return result


def _with_pinned(ranked: list[Judged], chosen: Judged, scenario: Scenario) -> list[Judged]:
    """Return the ranking with the pinned strategy at its place."""
    others = [each for each in ranked if len(each.pools) > 1 or each.pools[0].strategy != chosen.pools[0].strategy]
    place = sum(standing(scenario, each) > standing(scenario, chosen) for each in others)
    return [*others[:place], chosen, *others[place:]]


def _ranking(scenario: Scenario, ranked: list[Judged], chosen: Judged) -> tuple[RankedStrategy, ...]:
    lines: list[RankedStrategy] = []
    for index, each in enumerate(ranked):
        projection = each.projection
        mode: Literal["aggregated", "disaggregated"] = "disaggregated" if len(each.pools) > 1 else "aggregated"
        lines.append(
            RankedStrategy(
                rank=index + 1,
                strategy=each.name,
                mode=mode,
                all_to_all=each.options.all_to_all,
                two_batch_overlap=each.options.two_batch_overlap,
                throughput_tokens_per_s_per_gpu=projection.throughput_tokens_per_s_per_gpu,
                ttft_s=projection.ttft_s,
                tpot_s=projection.tpot_s,
                step_s=projection.step_s,
                meets_slo=missed_share(scenario, each) == 0,
                why_not=_why_not(scenario, each, chosen, ranked[0]),
            )
        )
    return tuple(lines)


def _why_not(scenario: Scenario, judged: Judged, chosen: Judged, best: Judged) -> str:
    if judged is chosen:
        return ""
    if judged is best:
        return f"the best, but {chosen.name} was asked for"
    slo, projection = scenario.workload.slo, judged.projection
    over = [
        f"{name} {value * 1e3:.0f} ms is over the objective of {limit * 1e3:.0f} ms"
        for name, limit, value in (("TTFT", slo.ttft_s, projection.ttft_s), ("TPOT", slo.tpot_s, projection.tpot_s))
        if limit is not None and value is not None and value > limit
    ]
    if over:
        return "; ".join(over)
    less = 1 - projection.throughput_tokens_per_s / best.projection.throughput_tokens_per_s
    slower = latency_s(judged) / latency_s(best) - 1
    said = f"{less:.1%} fewer tokens/s than {best.name}" if less > 0 else f"as fast as {best.name}"
    return said + (f" at {-slower:.1%} lower latency" if slower < 0 else "")


def _nothing_fits(
    scenario: Scenario, options: Options, rejected: Counter[str], examples: dict[str, tuple[str, str]]
) -> InputError:
    """Return the error that says what stands in the way, and how many GPUs would do where memory is what lacks."""
    cluster = scenario.cluster
    if rejected["fits-the-memory"]:
        enough = smallest_fitting_gpus(scenario, options)
        remedy = f"the smallest number of {cluster.device.name} GPUs that would is {enough}" if enough else (
            "no number of these GPUs that was tried would; ask for less concurrency or shorter requests"
        )
        example, reason = examples["fits-the-memory"]
        rule = f"{scenario.model.name} with workload {scenario.workload.name} does not fit {cluster.num_gpus} GPUs"
        return InputError(f"{rule} ({example} {reason})", field="cluster", value=cluster.name, remedy=remedy)
    rule, count = rejected.most_common(1)[0]
    return InputError(
        f"no strategy is possible on {cluster.num_gpus} GPUs; most ({count}) break the rule {rule}: {examples[rule][1]}",
        field="cluster",
        value=cluster.name,
        remedy="change the number of GPUs or the workload",
    )
