"""Errors of many rows: by metric, by group, in rank, and of the plan that would have been chosen."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from moiety.validation.noise import attainable_spearman, repeat_spread
from moiety.validation.rank import spearman

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from moiety.validation.compare import Compared

GROUPINGS = ("model", "system", "backend", "version", "phase", "precision", "kind")
_LEAST_RANKED = 4
"""Rows of a group from which a rank correlation says something."""
NEAR_BEST = 0.05
_FINE = 0.2
_TRAINED = ("tok_s_per_gpu", "tflops_per_gpu", "tflops_forced_balance", "mfu")
"""Throughput of a training run, the most direct first."""


@dataclass(frozen=True, slots=True)
class Score:
    """Errors of one metric over some rows, as shares of the measured value."""

    num_rows: int
    mape: float
    median: float
    bias: float
    """Mean of the signed errors."""


@dataclass(frozen=True, slots=True)
class RankedGroup:
    """Rows that differ in load and degrees only, and how well predictions order them."""

    name: str
    num_rows: int
    spearman: float
    share_of_missing: float
    """Of what all groups together lack of a rank correlation of 1."""


@dataclass(frozen=True, slots=True)
class MetricScore:
    """Errors of one metric over all rows that have it."""

    score: Score
    num_measured: int
    spearman: float | None
    """Mean rank correlation inside groups of rows that differ in load and degrees only."""
    repeat_spread: float | None = None
    """Standard deviation of the logarithm among repeats; None where too few rows were measured again."""
    attainable: float | None = None
    """The rank correlation that repeats so far apart leave to a law without error."""

    @property
    def coverage(self) -> float:
        """Share of the rows with the metric that were predicted."""
        return self.score.num_rows / self.num_measured


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """What choosing by the predictions costs, over groups where several deployments were measured under one load."""

    num_groups: int
    mean_loss: float
    """Throughput per GPU of the best measured deployment over that of the chosen one, - 1."""
    share_near_best: float
    """Groups in which the chosen one is within 5 % of the best."""
    spearman: float | None
    """Mean rank correlation of throughput per GPU inside groups of rows that differ in load and degrees only."""


def score_of(errors: Sequence[float]) -> Score:
    """Return the errors in numbers; there must be one at least."""
    sizes = [abs(each) for each in errors]
    return Score(len(errors), statistics.fmean(sizes), statistics.median(sizes), statistics.fmean(errors))


def metric_scores(rows: Sequence[Compared]) -> dict[str, MetricScore]:
    """Return the errors of every metric that was predicted for some row."""
    names = sorted({name for row in rows for name in row.predicted})
    return {name: _metric_score(rows, name) for name in names}


def _metric_score(rows: Sequence[Compared], name: str) -> MetricScore:
    groups = list(_ranked_groups(rows, name).values())
    spread = repeat_spread(rows, name)
    return MetricScore(
        score_of([row.error[name] for row in rows if name in row.error]),
        sum(name in row.measured for row in rows),
        _mean_spearman(groups),
        spread,
        attainable_spearman([[measured for _, measured in pairs] for pairs in groups], spread) if spread else None,
    )


def group_scores(rows: Sequence[Compared]) -> dict[str, dict[str, dict[str, Score]]]:
    """Return {grouping: {value: {metric: errors}}}, the worst group first."""
    found: dict[str, dict[str, dict[str, Score]]] = {}
    for grouping in GROUPINGS:
        members: dict[str, dict[str, list[float]]] = {}
        for row in rows:
            if grouping in row.group:
                for name, error in row.error.items():
                    members.setdefault(row.group[grouping], {}).setdefault(name, []).append(error)
        scored = {value: {n: score_of(errors) for n, errors in sorted(by.items())} for value, by in members.items()}
        if scored:
            found[grouping] = dict(sorted(scored.items(), key=lambda item: (-_worst(item[1].values()), item[0])))
    return found


def worst_groups(rows: Sequence[Compared], metric: str, least_rows: int) -> list[tuple[str, Score]]:
    """Return (group, errors) of rows with the same model, system, engine and version, the worst mean first."""
    members: dict[str, list[float]] = {}
    for row in rows:
        if metric in row.error:
            keys = ("model", "precision", "system", "backend", "version", "phase", "kind")
            members.setdefault(", ".join(row.group[k] for k in keys if k in row.group), []).append(row.error[metric])
    scored = [(name, score_of(errors)) for name, errors in members.items() if len(errors) >= least_rows]
    return sorted(scored, key=lambda item: (-item[1].mape, item[0]))


def worst_ranked(rows: Sequence[Compared], metric: str) -> list[RankedGroup]:
    """Return the groups whose rows are not in the measured order, the one that costs most first."""
    reached = [(name, len(pairs), spearman(pairs)) for name, pairs in _ranked_groups(rows, metric).items()]
    lacking = [(name, count, found) for name, count, found in reached if found is not None and found < 1]
    missing = sum(1 - found for _, _, found in lacking)
    groups = [RankedGroup(name, count, found, (1 - found) / missing) for name, count, found in lacking]
    return sorted(groups, key=lambda each: (each.spearman, each.name))


def skipped_reasons(rows: Iterable[Compared]) -> dict[str, int]:
    """Return how many predictions each reason kept from being made: of whole rows, or of one metric of a row."""
    reasons = (reason for row in rows for reason in (row.skipped, *row.unpredicted.values()))
    return dict(Counter(filter(None, reasons)).most_common())


def plan_choice(rows: Sequence[Compared]) -> PlanChoice | None:
    """Return what choosing by predicted throughput per GPU costs; None where no two deployments can be compared."""
    groups: dict[tuple[object, ...], dict[str, tuple[float, float]]] = {}
    orders: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        case, rates = row.case, _throughput_per_gpu(row)
        if case is None or rates is None:
            continue
        orders.setdefault(_but_load(row), []).append(rates)
        key = (*row.group.values(), case.input_tokens, case.output_tokens, case.concurrency)
        groups.setdefault(key, {}).setdefault(case.decode.strategy.name, rates)
    return _choice(groups.values(), orders)


def training_choice(rows: Sequence[Compared]) -> PlanChoice | None:
    """Return the same of training runs: of one model on as many GPUs, in one release of a framework, per GPU."""
    groups: dict[tuple[object, ...], dict[object, tuple[float, float]]] = {}
    orders: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        trained, name = row.trained, next((each for each in _TRAINED if each in row.error), None)
        if trained is None or name is None:
            continue
        rates = row.predicted[name], row.measured[name]
        key = (*row.group.values(), trained.release, name, trained.load)
        groups.setdefault(key, {}).setdefault(trained.way, rates)
        orders.setdefault(str(key[:-1]), []).append(rates)
    return _choice(groups.values(), orders)


def _choice(
    groups: Iterable[Mapping[Any, tuple[float, float]]], orders: dict[str, list[tuple[float, float]]]
) -> PlanChoice | None:
    """Return what choosing costs; `groups` and `orders` hold (predicted, measured) rates of deployments and of rows."""
    losses = list[float]()
    for found in groups:
        if len(found) > 1:
            chosen = max(found.values(), key=itemgetter(0))
            losses.append(max(measured for _, measured in found.values()) / chosen[1] - 1)
    if not losses:
        return None
    near = sum(loss <= NEAR_BEST for loss in losses) / len(losses)
    return PlanChoice(len(losses), statistics.fmean(losses), near, _mean_spearman(_with_order(orders).values()))


def _throughput_per_gpu(row: Compared) -> tuple[float, float] | None:
    """Return (predicted, measured) output tokens a second and GPU, from both latencies by Little's law.

    None where a latency is not known, and where prompts are computed on other GPUs.
    """
    case = row.case
    if case is None or case.disaggregated or not row.measured.keys() & row.predicted.keys() >= {"ttft_ms", "tpot_ms"}:
        return None
    predicted, measured = (
        case.concurrency
        * case.output_tokens
        * 1e3
        / (each["ttft_ms"] + (case.output_tokens - 1) * each["tpot_ms"])
        / case.decode.strategy.num_gpus
        for each in (row.predicted, row.measured)
    )
    return predicted, measured


def _worst(scores: Iterable[Score]) -> float:
    return max(score.mape for score in scores)


def _ranked_groups(rows: Sequence[Compared], metric: str) -> dict[str, list[tuple[float, float]]]:
    """Return (predicted, measured) of rows that differ in load and degrees only, by what they have in common."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if metric in row.error:
            groups.setdefault(_but_load(row), []).append((row.predicted[metric], row.measured[metric]))
    return _with_order(groups)


def _but_load(row: Compared) -> str:
    """Return what a row states beside its load and degrees."""
    lengths = (f"{row.case.input_tokens}/{row.case.output_tokens} tokens",) if row.case else ()
    return ", ".join((*row.group.values(), *lengths))


def _with_order(groups: dict[str, list[tuple[float, float]]]) -> dict[str, list[tuple[float, float]]]:
    """Return the groups in which an order says something."""
    return {name: pairs for name, pairs in groups.items() if len(set(pairs)) >= _LEAST_RANKED}


def _mean_spearman(groups: Iterable[Sequence[tuple[float, float]]]) -> float | None:
    reached = [each for each in map(spearman, groups) if each is not None]
    return statistics.fmean(reached) if reached else None


def percent(share: float, *, signed: bool = False) -> str:
    """Return a share for people: a tenth of a percent says something about small ones only."""
    digits = 1 if abs(share) < _FINE else 0
    return f"{share:{'+' if signed else ''}.{digits}%}"


def error_percents(score: Score) -> tuple[str, str, str]:
    """Return the mean size, the median size and the bias of errors for people."""
    return percent(score.mape), percent(score.median), percent(score.bias, signed=True)


def as_document(score: Score) -> Mapping[str, float | int]:
    """Return a score for a JSON document."""
    return {"num_rows": score.num_rows, "mape": score.mape, "median": score.median, "bias": score.bias}
