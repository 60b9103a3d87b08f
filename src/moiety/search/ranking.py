"""What the search says of the strategies it did not choose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.plan import RankedStrategy, RejectedRule
from moiety.search.standing import missed_share, quickness_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.projection.scenario import Scenario
    from moiety.search.judge import Judged


class Rejections:
    """Counts the strategies that each rule rejects; its example is the one that comes closest, else the first."""

    def __init__(self) -> None:
        self._by_rule: dict[str, RejectedRule] = {}
        self._missing: dict[str, int] = {}

    def add(self, rule: str, strategy: str, reason: str, missing_bytes: int = 0) -> None:
        """Count a strategy; `missing_bytes` says by how much it fails, where memory is what it lacks."""
        known = self._by_rule.get(rule)
        if known is None or missing_bytes < self._missing[rule]:
            self._missing[rule] = missing_bytes
            count = known.num_strategies if known else 0
            known = RejectedRule(rule=rule, num_strategies=count, example=strategy, reason=reason)
        self._by_rule[rule] = known.model_copy(update={"num_strategies": known.num_strategies + 1})

    def get(self, rule: str) -> RejectedRule | None:
        """Return what a rule rejected, None where it rejected nothing."""
        return self._by_rule.get(rule)

    def most_common(self) -> RejectedRule:
        """Return the rule that rejected most."""
        return max(self.summary(), key=lambda each: each.num_strategies)

    def summary(self) -> tuple[RejectedRule, ...]:
        """Return the rules by name."""
        return tuple(self._by_rule[rule] for rule in sorted(self._by_rule))


def ranking_lines(scenario: Scenario, ranked: Sequence[Judged], chosen: Judged) -> tuple[RankedStrategy, ...]:
    """Return a line for each strategy in order, with the reason why it is not the chosen one."""
    return tuple(
        RankedStrategy(
            rank=index + 1,
            strategy=each.name,
            mode="disaggregated" if each.is_disaggregated else "aggregated",
            all_to_all=each.options.all_to_all,
            two_batch_overlap=each.options.two_batch_overlap,
            fully_sharded=each.options.fully_sharded,
            throughput_tokens_per_s_per_gpu=each.projection.throughput_tokens_per_s_per_gpu,
            ttft_s=each.projection.ttft_s,
            tpot_s=each.projection.tpot_s,
            step_s=each.projection.step_s,
            simulated=each.simulated,
            meets_slo=missed_share(scenario, each.projection) == 0,
            why_not=_why_not(scenario, each, chosen, ranked[0]),
        )
        for index, each in enumerate(ranked)
    )


_EQUAL = 0.001
_EXPOSED_MORE = 0.01


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
    slower = quickness_s(scenario, projection) / quickness_s(scenario, best.projection) - 1
    quicker = f" at {-slower:.1%} lower latency" if slower < 0 else ""
    if less < _EQUAL:
        return f"as fast as {best.name}{quicker}"
    return f"{less:.1%} fewer tokens/s than {best.name}{quicker}: {_cause(judged, best)}"


def _cause(judged: Judged, best: Judged) -> str:
    """Return what of its step costs a strategy more than the best one."""
    exposed, there = (each.projection.exposed_communication_fraction for each in (judged, best))
    if exposed - there > _EXPOSED_MORE:
        return f"{exposed:.1%} of its step is exposed communication, {there:.1%} there"
    if any(pool.strategy.pp > 1 for pool in judged.pools):
        return "pipeline stages wait for each other, or its kernels take longer for the same work"
    return "its kernels take longer for the same work"
