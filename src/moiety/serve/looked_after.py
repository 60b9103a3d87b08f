"""What the control plane looks after in a served plan, and the policy that it follows there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moiety.control.deployment import deployment_of, slot_map_of
from moiety.control.policy import Deployment, Policy, members_alone
from moiety.health import Patience

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
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


def looked_after(plan: Plan, calibration: Calibration) -> LookedAfter:
    """Return what is looked after: experts too, where whole groups of ranks that share them can go on without others.

    Plans with pipeline stages or instances, or of one group, are folded onto the ranks that are left, their experts
    dealt out anew: there only who works is decided. Clocks and nodes are not: a server has its machine as it is.
    """
    pool = plan.pools[0]
    strategy = pool.strategy
    is_one_stage = strategy.pp == strategy.instances == 1
    if pool.placement is None or not is_one_stage or max(strategy.tp, strategy.etp) == strategy.num_gpus:
        ranks = plan.num_gpus
        return LookedAfter(members_alone(ranks), np.zeros((0, ranks), dtype=np.int64))
    found = replace(deployment_of(plan, calibration), clock_points=(), tokens_per_s_per_node=None)
    return LookedAfter(found, slot_map_of(pool))


def policy_of(*, window_s: float, balance: bool) -> Policy:
    """Return the policy of a server.

    Its machine may be busy with more than ranks, so that silence and slowness are borne a little longer. Ranks end with
    it, so none can go on elsewhere. A process is started anew within seconds, so little is gained by keeping it waiting
    the first time.
    """
    patience = Patience(silent_s=2.5)
    return Policy(
        patience=patience, needs_majority=False, slower=1.5, backoff_s=5.0, window_s=window_s, balance=balance
    )
