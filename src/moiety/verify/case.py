"""AuditCase: the claims beside the plans they are about, with what the rules need to compare the two."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moiety.errors import InputError
from moiety.plan import Plan, Pool
from moiety.projection.place import placed_again
from moiety.projection.project import Evaluation, evaluate
from moiety.projection.scenario import scenario_of
from moiety.projection.schedule import schedules
from moiety.strategy.legality import broken_rules
from moiety.strategy.strategy import parse_strategy
from moiety.verify.closed_form import pool_flops_per_token

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moiety.calibration.calibration import Calibration
    from moiety.plan import Options, Projection, Schedule
    from moiety.projection.step import Timing
    from moiety.strategy.strategy import Strategy
    from moiety.verify.claims import Claim, ClaimSet, VariantName

PROJECTION_ERROR = 0.25
"""Mean relative error of a closed form of the same kind on 1,385 published serving measurements: what a projection of
this calibration may be off by before it speaks against a claim."""

_SIMULATED_MICROBATCHES = 16
"""Steps of more micro-batches repeat themselves: a few layers and micro-batches stand for all."""


@dataclass(slots=True)
class AuditCase:
    """The claims, and the plans of the claimed strategy by variant, evaluated."""

    claims: ClaimSet
    plans: Mapping[VariantName, Plan]
    calibration: Calibration
    _evaluations: dict[str, Evaluation] = field(default_factory=dict[str, Evaluation])

    @property
    def plan(self) -> Plan:
        """The plan that has every option on, or the fullest there is."""
        return self.plans["enhanced"] if "enhanced" in self.plans else list(self.plans.values())[-1]

    @property
    def pool(self) -> Pool:
        """The plan's pool that the claims are about: the only one, or the one that emits tokens."""
        return self.plan.pools[-1]

    def flops_per_counted_token(self) -> float:
        """Return the FLOPs behind each token that a throughput counts: with its share of prompts where those do not."""
        workload = self.plan.workload
        prompts = workload.input_tokens / workload.output_tokens if self.pool.role == "mixed" else 0.0
        return pool_flops_per_token(self.plan, self.pool) * (1 + prompts)

    def evaluation(self) -> Evaluation:
        """Return what the plan's phases come to, a few layers standing for all."""
        if "plan" not in self._evaluations:
            self._evaluations["plan"] = evaluate(self.plan, self.calibration, timing="folded")
        return self._evaluations["plan"]

    def projection(self, variant: VariantName | None) -> Projection | None:
        """Return the projection of a variant's plan, where there is such a plan."""
        plan = self.plans.get(variant) if variant else None
        return plan.projection if plan else None

    def claimed(self, quantity: str, of: VariantName | None = None, over: VariantName | None = None) -> list[Claim]:
        """Return the claims about a quantity, of a variant (over another one) where that is given."""
        return [
            each
            for each in self.claims.claims
            if each.quantity == quantity and (of is None or each.of == of) and (over is None or each.over == over)
        ]

    def project(self, strategy: Strategy, options: Options, *, tokens: Sequence[int] | None = None) -> Plan | str:
        """Return the plan of a strategy on the plan's cluster, its best schedule evaluated, or why there is none.

        `tokens` prescribes (micro-batches, tokens of one) instead of dividing the workload's.
        """
        wanted = None
        if tokens is not None:
            count, size = tokens
            wanted = [self.pool.schedule.model_copy(update={"num_microbatches": count, "prefill_tokens": size})]
        return best_plan(self.plan, strategy, options, self.calibration, wanted)

    def project_anyway(self, options: Options) -> Plan:
        """Return the plan with other options and nothing else changed, estimated, whether it fits the memory or not."""
        return evaluate(self.plan.model_copy(update={"options": options}), self.calibration, timing="estimated").plan


def best_plan(
    base: Plan,
    strategy: Strategy,
    options: Options,
    calibration: Calibration,
    wanted: Sequence[Schedule] | None = None,
    *,
    timing: Timing = "estimated",
) -> Plan | str:
    """Return the plan of `strategy` for the scenario of `base` with the best schedule, or why there is none."""
    broken = broken_rules(base.model, strategy, options.redundant_experts)
    if broken:
        return broken[0].reason
    workload, role = base.workload, base.workload.kind
    if wanted is None:
        wanted = schedules(workload, role, strategy, options, workload.concurrency or _in_flight(base.pools[-1]))
    scenario = scenario_of(base, calibration)
    placement = placed_again(scenario, base.pools, strategy, options)
    others = next((pool.measured for pool in base.pools if pool.strategy == strategy and pool.first_rank == 0), ())
    best: Plan | None = None
    reason = "the workload is too little for it"
    for schedule in wanted:
        pool = Pool(role=role, first_rank=0, strategy=strategy, schedule=schedule, placement=placement, measured=others)
        plan = base.model_copy(
            update={"options": options, "pools": (pool,), "projection": None, "comparison": (), "search": None}
        )
        plan = evaluate(plan, calibration, timing=timing).plan
        memory = plan.pools[0].memory
        if memory is not None and not memory.fits:
            reason = f"it needs {memory.total_bytes / 1e9:.1f} GB of {memory.capacity_bytes / 1e9:.1f} GB a GPU"
        elif best is None or _rate(plan) > _rate(best):
            best = plan
    return best if best is not None else reason


def claimed_plans(
    claims: ClaimSet, base: Plan, options: Mapping[VariantName, Options], calibration: Calibration
) -> dict[VariantName, Plan]:
    """Return the claimed strategy's plans for the scenario of `base`, one for each variant's options, evaluated.

    Variants that do not fit are left out. Raises InputError where the claims name another scenario or a strategy that
    the model or the cluster does not allow.
    """
    for what, said, found in (
        ("model", claims.model, base.model.name),
        ("cluster", claims.cluster, base.cluster.name),
        ("workload", claims.workload, base.workload.name),
    ):
        if said is not None and said != found:
            rule = f"the claims are about the {what} {said!r}, the plan is for {found!r}"
            raise InputError(rule, source=claims.name, field=what, remedy=f"plan for {said!r}, or leave {what} out")
    strategy = parse_strategy(claims.strategy, base.cluster.num_gpus)
    broken = broken_rules(base.model, strategy, 0)
    if broken:
        raise InputError(broken[0].reason, source=claims.name, field="strategy", value=claims.strategy)
    plans: dict[VariantName, Plan] = {}
    for name, choice in options.items():
        plan = best_plan(base, strategy, choice.model_copy(update={"redundant_experts": 0}), calibration)
        if isinstance(plan, Plan):
            few = plan.pools[0].schedule.num_microbatches <= _SIMULATED_MICROBATCHES
            plans[name] = evaluate(plan, calibration, timing="simulated" if few else "folded").plan
    return plans


def _in_flight(pool: Pool) -> int:
    """Return the sequences that a pool decodes at once: what an arrival rate has led to."""
    schedule, strategy = pool.schedule, pool.strategy
    return max(schedule.decode_sequences * schedule.num_microbatches * strategy.attn_dp * strategy.instances, 1)


def _rate(plan: Plan) -> float:
    return plan.projection.throughput_tokens_per_s if plan.projection else 0.0
