"""What the control plane looks after in a served plan, and the policy that it follows there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moiety.control.deployment import clock_points, deployment_of, slot_map_of
from moiety.control.policy import Deployment, Policy, members_alone
from moiety.errors import InputError
from moiety.health import Patience

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.control.policy import ClockPoint
    from moiety.placement.problem import SlotMap
    from moiety.plan import Plan


@dataclass(frozen=True, slots=True)
class LookedAfter:
    """A served plan, as the control plane sees it."""

    deployment: Deployment
    slot_map: SlotMap
    """[layers, slots]; no layers where experts are not looked after."""

    @property
    def gpus_per_rank(self) -> int:
        """Homes of the crew that are one rank here."""
        return self.deployment.gpus_per_rank

    def rank_of(self, home: int) -> int:
        """Return the rank that a home of the crew is (a part of)."""
        return home // self.gpus_per_rank

    def homes_of(self, rank: int) -> range:
        """Return the homes of the crew that are a rank."""
        return range(rank * self.gpus_per_rank, (rank + 1) * self.gpus_per_rank)


def looked_after(plan: Plan, calibration: Calibration, *, least_nodes: int | None = None) -> LookedAfter:
    """Return what is looked after: experts too, where whole groups of ranks that share them can go on without others.

    Plans with pipeline stages or instances, or of one group, are folded onto the ranks that are left, their experts
    dealt out anew: there only who works is decided, and clocks. Nodes are where `least_nodes` says how many stay;
    raises InputError where so few cannot be.
    """
    pool = plan.pools[0]
    strategy = pool.strategy
    is_one_stage = strategy.pp == strategy.instances == 1
    if pool.placement is None or not is_one_stage or max(strategy.tp, strategy.etp) == strategy.num_gpus:
        ranks = plan.num_gpus
        if least_nodes is not None:
            rule = "nodes are given up only where whole groups of ranks share the experts, without pipelines"
            raise InputError(rule, source=plan.name, field="--scale-nodes", value=least_nodes, remedy="leave it out")
        limits = {"clock_points": _clock_points(plan, calibration), "tpot_limit_s": plan.workload.slo.tpot_s}
        alone = replace(members_alone(ranks), phase=pool.role, **limits)
        return LookedAfter(alone, np.zeros((0, ranks), dtype=np.int64))
    found = deployment_of(plan, calibration)
    if not _has_gpus(plan):
        found = replace(found, clock_points=())
    if least_nodes is None:
        found = replace(found, tokens_per_s_per_node=None)
    else:
        _check_nodes(found, least_nodes, plan.name)
    return LookedAfter(found, slot_map_of(pool))


def _has_gpus(plan: Plan) -> bool:
    return plan.cluster.device.architecture != "cpu"


def _clock_points(plan: Plan, calibration: Calibration) -> tuple[ClockPoint, ...]:
    return clock_points(plan, plan.pools[0], calibration) if _has_gpus(plan) else ()


def _check_nodes(of: Deployment, least: int, source: str) -> None:
    """Raise InputError where nodes cannot be given up until so few are left."""
    if least >= of.num_nodes:
        rule = f"must be less than the {of.num_nodes} node{'s' * (of.num_nodes > 1)} of the plan"
        raise InputError(rule, source=source, field="--scale-nodes", value=least, remedy="leave it out")
    room = of.ranks_per_node * of.most_slots
    if least * room < of.num_experts:
        rule = f"cannot hold the model: a node has memory for {room} of a layer's {of.num_experts} experts"
        remedy = f"name {-(-of.num_experts // room)} at least" if room else "leave it out"
        raise InputError(rule, source=source, field="--scale-nodes", value=least, remedy=remedy)


def policy_of(*, window_s: float, balance: bool, least_nodes: int | None = None) -> Policy:
    """Return the policy of a server.

    Its machine may be busy with more than ranks, so that silence and slowness are borne a little longer. Ranks end with
    it, so none can go on elsewhere. A process is started anew within seconds, so little is gained by keeping it waiting
    the first time.
    """
    patience = Patience(silent_s=2.5)
    return Policy(
        patience=patience,
        needs_majority=False,
        slower=1.5,
        backoff_s=5.0,
        window_s=window_s,
        balance=balance,
        least_nodes=least_nodes or 1,
    )
