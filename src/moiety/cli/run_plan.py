"""The plan of a run: as it is, with another exchange, or folded onto fewer ranks for rehearsal."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moiety.calibration.engines import engine_calibration
from moiety.cli.run_layers import check_layers
from moiety.errors import InputError
from moiety.machine.local_cluster import local_cluster
from moiety.plan import Pool
from moiety.projection.place import place
from moiety.projection.project import evaluate
from moiety.projection.scenario import Scenario
from moiety.projection.schedule import schedules
from moiety.runtime.fold import fold
from moiety.search.options import default_dtypes
from moiety.search.planner import assemble

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.calibration.calibration import Calibration
    from moiety.cluster.cluster import Cluster
    from moiety.model.model import Model
    from moiety.plan import AllToAll, Options, Phase, Plan, Schedule
    from moiety.runtime.fold import Fold
    from moiety.strategy.strategy import Strategy
    from moiety.workload.workload import Workload

MOST_WHOLE_RANKS = 16
"""Ranks that one machine starts for a plan as it is; a plan for more is folded."""
FOLDED_RANKS = 4
"""Ranks that such a plan is folded onto."""
MOST_PROMPT_TOKENS = 512
"""Tokens of a prompt in a rehearsal; answers are at most as long."""
MOST_RANK_TOKENS = 2048
"""Tokens of a rank in a step of a rehearsal: a CPU takes a second or so for them."""
MOST_RANK_SEQUENCES = 32


@dataclass(frozen=True, slots=True)
class Folding:
    """A plan folded for rehearsal, and what that did to it."""

    before: Plan
    plan: Plan
    fold: Fold
    calibration: Calibration
    """What the folded plan was evaluated with."""

    @property
    def is_scaled_down(self) -> bool:
        """Whether it runs on a smaller copy of its model."""
        return self.plan.model.num_parameters != self.before.model.num_parameters

    def document(self) -> dict[str, object]:
        """Return what was made of what, as JSON."""
        return {"from": _shape(self.before), "to": _shape(self.plan), "reasons": list(self.fold.reasons)}

    def sentence(self) -> str:
        """Return the same in a sentence."""
        before, after = self.before, self.plan
        said = f"rehearsal: the plan of {before.num_gpus} GPUs ({before.pools[0].strategy.name}) is folded onto "
        said += f"{after.num_gpus} ranks ({after.pools[0].strategy.name})"
        if after.cluster.num_nodes > 1:
            said += f" in {after.cluster.num_nodes} nodes"
        if self.is_scaled_down:
            said += f", and {after.model.name} stands for {before.model.name}: "
            said += f"{after.model.num_parameters:,} parameters for {before.model.num_parameters:,}"
        workload = after.workload
        load = (
            f"{workload.tokens_in_flight:,} tokens" if workload.tokens_in_flight else f"{workload.concurrency} requests"
        )
        said += f", under {load} in flight with prompts of {workload.input_tokens}"
        return "; ".join((said, *self.fold.reasons))


def check_runnable(plan: Plan, source: str) -> None:
    """Raise InputError for a plan that this run time does not execute."""
    if len(plan.pools) > 1:
        roles = " + ".join(pool.role for pool in plan.pools)
        remedy = "pin a strategy for all GPUs: moiety plan ... --strategy S"
        raise InputError("run executes plans of one pool", source=source, field="pools", value=roles, remedy=remedy)
    if plan.options.virtual_stages > 1:
        rule = "stages of several parts are planned but not executed"
        remedy = "plan with --set virtual_stages=1"
        raise InputError(
            rule, source=source, field="options.virtual_stages", value=plan.options.virtual_stages, remedy=remedy
        )
    for pool in plan.pools:
        if pool.strategy.cp > 1:
            rule = "context parallelism is planned but not executed"
            remedy = "pin a strategy without cp: moiety plan ... --strategy S"
            raise InputError(rule, source=source, field="pools[0].strategy.cp", value=pool.strategy.cp, remedy=remedy)
    check_layers(plan.model, source)


def with_exchange(plan: Plan, all_to_all: AllToAll, calibration: Calibration) -> Plan:
    """Return the plan with another way of sending tokens to experts, evaluated anew."""
    options = plan.options.model_copy(update={"all_to_all": all_to_all})
    return evaluate(plan.model_copy(update={"options": options}), calibration).plan


def folded(plan: Plan, num_ranks: int, model: Model, cluster: Callable[[str], Cluster] = local_cluster) -> Folding:
    """Return the plan on `num_ranks` ranks of this machine, for `model`: its own, or a smaller copy of it.

    The load shrinks with the GPUs and to what a CPU computes in a moment, experts are placed anew by the plan's method
    (in order where no routing is known), and the prediction is for this machine. `cluster` describes that, from
    a spelling such as `local:2x2`.
    """
    pool, cluster_before = plan.pools[0], plan.cluster
    if num_ranks > plan.num_gpus:
        rule = f"the plan has {plan.num_gpus} ranks, and folding only makes fewer"
        raise InputError(rule, field="--fold", value=num_ranks)
    made = fold(
        pool.strategy,
        num_ranks,
        model,
        redundant_experts=plan.options.redundant_experts,
        gpus_per_node=cluster_before.gpus_per_node,
    )
    spelling = f"local:{made.num_nodes}x{made.gpus_per_node}" if made.num_nodes > 1 else f"local:{num_ranks}"
    here = cluster(spelling)
    is_whole = _sizes(model) == _sizes(plan.model)
    scenario = Scenario(
        model=model,
        cluster=here,
        workload=plan.workload,
        engine=plan.engine,
        calibration=engine_calibration(plan.engine, here.device.architecture, here.device.memory_bytes),
        expert_shares=plan.expert_shares if is_whole else None,
    )
    options = _options(plan, scenario, made)
    workload, schedule = _smaller_load(plan, made.strategy, options)
    scenario = replace(scenario, workload=workload)
    pools = (
        Pool(
            role=pool.role,
            first_rank=0,
            strategy=made.strategy,
            schedule=schedule,
            placement=place(scenario, made.strategy, options),
        ),
    )
    decided = assemble(scenario, pools, options, plan.name, plan.provenance.moiety_version)
    return Folding(plan, evaluate(decided, scenario.calibration).plan, made, scenario.calibration)


def _options(plan: Plan, scenario: Scenario, made: Fold) -> Options:
    """Return the plan's options: experts in order where no routing is known, formats as a smaller checkpoint has."""
    changes: dict[str, object] = {"redundant_experts": made.redundant_experts}
    if scenario.expert_shares is None:
        changes["placement"] = "linear"
    if _sizes(scenario.model) != _sizes(plan.model):
        changes["dtypes"] = default_dtypes(scenario)
    return plan.options.model_copy(update=changes)


def _sizes(model: Model) -> dict[str, object]:
    return model.model_dump(exclude={"name", "source", "warnings"})


def _smaller_load(plan: Plan, strategy: Strategy, options: Options) -> tuple[Workload, Schedule]:
    """Return the workload's share of fewer GPUs, and its first schedule; more than the share where groups would idle.

    An arrival rate becomes the requests in flight that the plan's schedule has room for.
    """
    workload, role = plan.workload, plan.pools[0].role
    load = _load(plan)
    share = load * strategy.num_gpus / plan.num_gpus
    is_batch = role in {"prefill", "training"}
    share = min(share, strategy.num_gpus * (MOST_RANK_TOKENS if is_batch else MOST_RANK_SEQUENCES))
    while True:
        smaller = _with_load(workload, role, max(math.ceil(share), 1), strategy.num_gpus)
        found = schedules(smaller, role, strategy, options)
        if found:
            return smaller, found[0]
        share *= 2


def _load(plan: Plan) -> int:
    """Return the tokens (prefill, training) or requests in flight over the whole plan."""
    workload, pool = plan.workload, plan.pools[0]
    if pool.role in {"prefill", "training"}:
        return workload.tokens_per_batch
    groups = pool.strategy.attn_dp * pool.strategy.instances
    return workload.concurrency or pool.schedule.decode_sequences * pool.schedule.num_microbatches * groups


def _with_load(workload: Workload, role: Phase, load: int, num_ranks: int) -> Workload:
    is_batch = role in {"prefill", "training"}
    fields: dict[str, object] = {
        **workload.model_dump(),
        "name": f"{workload.name} folded onto {num_ranks} ranks",
        "input_tokens": min(workload.input_tokens, MOST_PROMPT_TOKENS),
        "output_tokens": min(workload.output_tokens, MOST_PROMPT_TOKENS),
        "tokens_in_flight": load if is_batch else None,
        "concurrency": None if is_batch else load,
        "request_rate_per_s": None,
    }
    return type(workload).model_validate(fields)


def _shape(plan: Plan) -> dict[str, object]:
    strategy = plan.pools[0].strategy
    return {
        "strategy": strategy.name,
        "degrees": strategy.model_dump(mode="json"),
        "redundant_experts": plan.options.redundant_experts,
        "placement": plan.options.placement,
        "num_gpus": plan.num_gpus,
        "num_nodes": math.ceil(plan.num_gpus / plan.cluster.gpus_per_node),
        "cluster": plan.cluster.name,
        "model": plan.model.name,
        "num_parameters": plan.model.num_parameters,
    }
