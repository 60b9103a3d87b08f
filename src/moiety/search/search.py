"""The search: every legal strategy costed, the best simulated, ranked under the objective; why not, for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.errors import InputError
from moiety.plan import SearchSummary
from moiety.search.disaggregation import disaggregated
from moiety.search.fit import smallest_fitting_gpus
from moiety.search.judge import Judged, Refused, judge
from moiety.search.pareto import pareto_front
from moiety.search.ranking import Rejections, ranking_lines
from moiety.search.standing import standing
from moiety.strategy.enumeration import enumerate_strategies
from moiety.strategy.legality import broken_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moiety.plan import Options
    from moiety.projection.scenario import Scenario
    from moiety.strategy.strategy import Strategy

    Progress = Callable[[int, int], None]

_SIMULATED = 24
_SHORTEST_PART = 1024
"""Tokens of a sequence's part with context parallelism: attention was measured on no fewer."""


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
    Raises InputError where nothing is legal, or fits, or keeps up; where memory lacks it names the smallest number of
    GPUs that would do.
    """
    workload = scenario.workload
    shared = max(workload.input_tokens // _SHORTEST_PART, 1) if workload.kind == "training" else 1
    candidates = list(
        enumerate_strategies(
            scenario.model, scenario.cluster.num_gpus, options.redundant_experts, context_parallel=shared
        )
    )
    rejected = Rejections()
    for candidate in candidates:
        for broken in candidate.broken[:1]:
            rejected.add(broken.rule, candidate.strategy.name, broken.reason)
    legal = [candidate.strategy for candidate in candidates if candidate.is_legal]
    judged = _judged(scenario, options, legal, rejected, tune=tune, progress=progress)
    num_fitting = len(judged)
    if workload.kind == "mixed" and (judged or rejected.get("keeps-up-with-arrivals")):
        judged += disaggregated(scenario, options, next(iter(_ranked(scenario, judged)), None), tune=tune)
    judged = _ranked(scenario, judged)
    ranked = [_simulated(scenario, each, options, tune=tune) for each in judged[:_SIMULATED]]
    ranked = _ranked(scenario, ranked) + judged[_SIMULATED:]
    if progress:
        progress(len(legal), len(legal))
    if pinned is not None:
        chosen = _pinned(scenario, options, pinned, tune=tune)
        ranked = _with_pinned(ranked, chosen, scenario)
    elif ranked:
        chosen = ranked[0]
    else:
        raise _nothing_fits(scenario, options, rejected, tune=tune)
    summary = SearchSummary(
        num_enumerated=len(candidates),
        num_legal=len(legal),
        num_fitting=num_fitting,
        ranking=ranking_lines(scenario, ranked, chosen),
        pareto_front=pareto_front(scenario, ranked, options, tune=tune),
        rejected=rejected.summary(),
        chosen_by="search" if pinned is None else "user",
    )
    return SearchResult(chosen, summary)


def _judged(
    scenario: Scenario,
    options: Options,
    legal: Sequence[Strategy],
    rejected: Rejections,
    *,
    tune: bool,
    progress: Progress | None,
) -> list[Judged]:
    """Return the strategies that work, timed in closed form; the others go to `rejected`."""
    found: list[Judged] = []
    for index, strategy in enumerate(legal):
        result = judge(scenario, strategy, options, tune=tune, timing="estimated")
        if isinstance(result, Refused):
            rejected.add(result.rule, strategy.name, result.reason, result.missing_bytes)
        else:
            found.append(result)
        if progress and index % 16 == 0:
            progress(index, len(legal))
    return found


def _ranked(scenario: Scenario, judged: Sequence[Judged]) -> list[Judged]:
    """Return the strategies, the best first; equal ones by name."""
    by_name = sorted(judged, key=lambda each: each.name)
    return sorted(by_name, key=lambda each: standing(scenario, each.projection), reverse=True)


def _simulated(scenario: Scenario, judged: Judged, options: Options, *, tune: bool) -> Judged:
    """Return the strategy judged again with its layers simulated, fully sharded if it was so."""
    if judged.is_disaggregated:
        return judged
    sharded = judged.options.fully_sharded
    again = judge(scenario, judged.pools[0].strategy, options, tune=tune, timing="folded", sharded=sharded)
    return again if isinstance(again, Judged) else judged


def _pinned(scenario: Scenario, options: Options, pinned: Strategy, *, tune: bool) -> Judged:
    broken = broken_rules(scenario.model, pinned, options.redundant_experts)
    if broken:
        raise InputError(f"breaks the rule {broken[0].rule}: {broken[0].reason}", field="strategy", value=pinned.name)
    result = judge(scenario, pinned, options, tune=tune, timing="folded")
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
    others = [each for each in ranked if each.is_disaggregated or each.pools[0].strategy != chosen.pools[0].strategy]
    mine = standing(scenario, chosen.projection)
    place = sum(standing(scenario, each.projection) > mine for each in others)
    return [*others[:place], chosen, *others[place:]]


def _nothing_fits(scenario: Scenario, options: Options, rejected: Rejections, *, tune: bool) -> InputError:
    """Return the error that says what stands in the way, and how many GPUs would do where more of them help."""
    cluster, most = scenario.cluster, rejected.most_common()
    late, memory = rejected.get("keeps-up-with-arrivals"), rejected.get("fits-the-memory")
    job = f"{scenario.model.name} with workload {scenario.workload.name}"
    if late is not None:
        # requests that pile up fill the memory too, but that is not the cause
        rule = f"{job} cannot be served on {cluster.num_gpus} GPUs: {late.reason}"
    elif memory is not None:
        rule = f"{job} does not fit {cluster.num_gpus} GPUs ({memory.example} {memory.reason})"
    else:
        return InputError(
            f"no strategy is possible on {cluster.num_gpus} GPUs; "
            f"most ({most.num_strategies}) break the rule {most.rule}: {most.reason}",
            field="cluster",
            value=cluster.name,
            remedy="change the number of GPUs or the workload",
        )
    enough = smallest_fitting_gpus(scenario, options, tune=tune)
    remedy = "no number of these GPUs that was tried would; ask for less concurrency or shorter requests"
    if enough:
        remedy = f"the smallest number of {cluster.device.name} GPUs that would is {enough}"
    return InputError(rule, field="cluster", value=cluster.name, remedy=remedy)
