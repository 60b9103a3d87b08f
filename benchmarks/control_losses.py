"""Loss of 1 to 16 of 32 ranks, simulated: experts covered, throughput, and how long until all experts serve again.

python benchmarks/control_losses.py [--lost 1 8 16] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import replace

from moiety.calibration.catalog import load_calibration
from moiety.cli.control import expert_shares
from moiety.cluster.catalog import load_cluster
from moiety.control.day.conditions import Conditions, Fault
from moiety.control.day.simulate import simulate_day
from moiety.control.deployment import deployment_of, pool_of, slot_map_of
from moiety.control.policy import Policy
from moiety.model.catalog import load_catalog_model
from moiety.projection.scenario import Scenario
from moiety.search.failure import degrade
from moiety.search.options import default_options
from moiety.search.planner import make_plan
from moiety.strategy.strategy import parse_strategy
from moiety.workload.catalog import load_workload

AIM_SHARE, AIM_S = 0.9, 10.0
FAULT_S, HOURS = 400.3, 0.25

parser = argparse.ArgumentParser()
parser.add_argument("--lost", type=int, nargs="+", default=range(1, 17), help="How many.")
parser.add_argument("--seed", type=int, default=0, help="Of which ones.")
arguments = parser.parse_args()

calibration = load_calibration()
case = Scenario(
    load_catalog_model("deepseek-v3"),
    load_cluster("h200x32"),
    load_workload("batch-decode"),
    "moiety",
    calibration,
)
options = default_options(case).model_copy(update={"redundant_experts": 32})
plan = make_plan(case, options, pinned=parse_strategy("ep32_tp1", 32), name="losses", version="0").plan
of = replace(deployment_of(plan, calibration), tokens_per_s_per_node=None)  # nodes stay
conditions = Conditions()
all_met = True
for count in arguments.lost:
    drawn = random.Random(f"{arguments.seed} {count}")  # noqa: S311 - no secret
    # of two halves that cannot hear each other the one with rank 0 goes on
    lost = tuple(sorted(drawn.sample(range(1, of.num_ranks), count)))
    after = degrade(plan, [f"gpu:{rank}" for rank in lost], calibration)
    day = simulate_day(
        of,
        slot_map_of(pool_of(plan)),
        expert_shares(plan, calibration),
        plan.cluster.device,
        Policy(window_s=300.0),
        conditions,
        top_k=8,
        hours=HOURS,
        faults=(Fault(FAULT_S, lost, "loss"),),
    )
    (found,) = day.recoveries
    fair = after.alive_gpus / plan.num_gpus
    met = after.throughput_share >= AIM_SHARE * fair and after.pools[0].fits
    served_s, fenced_s = found.served_after_s, found.fenced_after_s
    assert served_s is not None, "experts find room"
    assert fenced_s is not None, "silent ranks are fenced"
    is_soon = served_s <= AIM_S
    all_met &= met and is_soon
    print(
        f"{count:2} of 32 lost: throughput {after.throughput_share:.1%}, "
        f"{after.throughput_share / fair:.2f} of alive/total "
        f"({'met' if met else 'MISSED'}); fenced after {fenced_s:.1f} s, all experts serve after {served_s:.1f} s "
        f"({'met' if is_soon else 'MISSED'})",
        flush=True,
    )
sys.exit(0 if all_met else 1)
