"""Time of simulating one step of training from 128 to 65,536 GPUs: it grows with what differs, not with GPUs.

    python benchmarks/scale.py [--largest 65536]

DeepSeek-V3 in BF16 on nodes of eight H100, 16 stages, experts over the 8 or 64 GPUs of a stage, one sequence of 4,096
tokens a micro-batch, 32 micro-batches a step; the other GPUs are copies. Experts equally loaded, and by a Zipf law that
tells ranks apart. A cold figure each: nothing is remembered from the one before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from moiety.calibration.catalog import calibration_for
from moiety.cluster.catalog import load_cluster
from moiety.model.catalog import load_catalog_model
from moiety.placement.linear import place_linear
from moiety.plan import Options, Schedule
from moiety.projection.load import load_classes
from moiety.projection.scenario import Scenario
from moiety.projection.step import time_step
from moiety.strategy.strategy import Strategy
from moiety.workload.workload import Workload

STAGES, MICROBATCHES, TOKENS = 16, 32, 4096
BAR_GPUS, BAR_S = 16_384, 5.0
SIZES = (128, 256, 512, 1024, 4096, 16_384, 65_536)


def simulate(gpus: int, skew: float) -> None:
    """Simulate one step and print what it took."""
    model, cluster = load_catalog_model("deepseek-v3"), load_cluster(f"h100x{gpus}")
    experts = min(gpus // STAGES, 64)
    strategy = Strategy(pp=STAGES, attn_dp=experts, ep=experts, instances=gpus // (STAGES * experts))
    schedule = Schedule(
        num_microbatches=MICROBATCHES,
        prefill_tokens=TOKENS,
        prompt_tokens=TOKENS,
        decode_sequences=0,
        context_tokens=0,
    )
    workload = Workload(
        name="scale",
        kind="training",
        input_tokens=TOKENS,
        tokens_in_flight=MICROBATCHES * TOKENS * gpus // STAGES,
        routing_skew=skew,
    )
    scenario = Scenario(model, cluster, workload, "moiety", calibration_for("hopper"))
    placement = place_linear(
        layers=[layer for layer, block in enumerate(model.layers) if block.feed_forward.kind == "moe"],
        num_experts=model.moe.num_experts if model.moe else 0,
        redundant_experts=0,
        num_gpus=experts,
        num_nodes=experts // 8,
        expert_tp=1,
    )
    start, cpu = time.perf_counter(), time.process_time()
    outcome = time_step(scenario, strategy, schedule, Options(), placement, training=True)
    seconds = time.perf_counter() - start
    used = time.process_time() - cpu
    classes = len(load_classes(scenario, strategy, schedule, placement))
    verdict = "" if gpus != BAR_GPUS else f"; bar {BAR_S:g} s: {'met' if seconds <= BAR_S else 'MISSED'}"
    assert outcome.timeline is not None, "the step was simulated"
    print(
        f"{gpus:>7,} GPUs, {strategy.name:<20} {classes:>2} classes: {seconds:5.2f} s ({used:.2f} s of a core) "
        f"for a step of {outcome.step_s:.2f} s, {len(outcome.timeline.steps.tasks):,} tasks{verdict}",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=65_536)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        simulate(int(given.one[0]), float(given.one[1]))
    else:
        for law in ("0", "0.6"):
            print("equal loads" if law == "0" else f"loads by a Zipf law of exponent {law}", flush=True)
            for number in SIZES:
                if number <= given.largest:
                    subprocess.run([sys.executable, __file__, "--one", str(number), law], check=True)
