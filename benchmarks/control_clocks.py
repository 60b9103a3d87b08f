"""The rule about power on the reference scenario: clock, power and step beside those at the highest clock.

python benchmarks/control_clocks.py
"""

from __future__ import annotations

from moiety.calibration.catalog import load_calibration
from moiety.cluster.catalog import load_cluster
from moiety.control.deployment import clock_points, pool_of
from moiety.control.energy import best_point
from moiety.control.policy import Policy
from moiety.model.catalog import load_catalog_model
from moiety.projection.scenario import Scenario
from moiety.search.options import default_options
from moiety.search.planner import make_plan
from moiety.workload.catalog import load_workload

AIM_POWER, AIM_SPEED = 0.15, 0.035

calibration = load_calibration()
for name in ("reference-decode", "reference-prefill"):
    case = Scenario(
        load_catalog_model("reference-moe-235b"),
        load_cluster("reference-128"),
        load_workload(name),
        "moiety",
        calibration,
    )
    plan = make_plan(case, default_options(case), name=name, version="0").plan
    points = clock_points(plan, pool_of(plan), calibration)
    best = best_point(points, Policy().most_slowdown, current=points[0])
    saved, longer = 1 - best.power_w / points[0].power_w, best.step_s / points[0].step_s - 1
    met = "met" if saved >= AIM_POWER and longer <= AIM_SPEED else "MISSED"
    print(
        f"{name}: {pool_of(plan).strategy.name}, clock {best.clock_hz / points[0].clock_hz:.0%}, "
        f"power {-saved:+.1%}, step {longer:+.1%} (aim -{AIM_POWER:.0%} at {AIM_SPEED:.1%}: {met})"
    )
