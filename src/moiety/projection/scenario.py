"""Scenario: what a plan is made for, and the constants it is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from moiety.cost.op_times import OpTimes

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration, Engine, EngineConstants
    from moiety.cluster.cluster import Cluster
    from moiety.model.model import Model
    from moiety.plan import Plan
    from moiety.workload.routing import Routing
    from moiety.workload.workload import Workload


@dataclass(frozen=True)
class Scenario:
    """A model, a cluster and a workload, with the engine that will run them and the calibration of the cost model.

    `expert_shares` are the routed experts' measured shares of the tokens, [MoE layers][experts], rows adding up to 1;
    None where no routing was given: then the workload's skew law holds. `routing` is the dump itself, a row for each
    MoE layer; None where none was given, and where a plan was read from its file, which holds only what it came to.
    """

    model: Model
    cluster: Cluster
    workload: Workload
    engine: Engine
    calibration: Calibration
    expert_shares: tuple[tuple[float, ...], ...] | None = None
    routing: Routing | None = None
    carries_calibration: bool = False
    """Whether plans must hold the calibration, because it came from a file."""

    @property
    def overheads(self) -> EngineConstants:
        """What the engine adds to the kernels."""
        return self.calibration.engines[self.engine]

    @cached_property
    def op_times(self) -> OpTimes:
        """What ops take on the cluster by the laws, as far as anyone has asked."""
        return OpTimes(self.cluster, self.calibration)


def scenario_of(plan: Plan, calibration: Calibration) -> Scenario:
    """Return the scenario that a plan was made for."""
    return Scenario(
        plan.model,
        plan.cluster,
        plan.workload,
        plan.engine,
        calibration,
        plan.expert_shares,
        carries_calibration=plan.calibration is not None,
    )
