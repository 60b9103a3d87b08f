"""Inspection: a finished plan, with what planning it again comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moiety.projection.project import Evaluation, evaluate

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.plan import Plan, Pool


@dataclass(slots=True)
class Inspection:
    """The plan as it stands in the file, and a lazily repeated evaluation of its decisions."""

    plan: Plan
    calibration: Calibration
    evaluation: Evaluation | None = None

    def evaluated(self) -> Evaluation:
        """Return the evaluation of the plan's decisions; what the file says of memory and projection plays no part."""
        if self.evaluation is None:
            self.evaluation = evaluate(self.plan, self.calibration)
        return self.evaluation

    def name_of(self, pool: Pool) -> str:
        """Return how findings call a pool."""
        return f"pool {pool.role} ({pool.strategy.name})" if len(self.plan.pools) > 1 else pool.strategy.name
