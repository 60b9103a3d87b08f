"""Two-batch overlap over a slow network: a step's two micro-batches in turns, against one after the other.

Two nodes of one rank (network namespaces: needs root and iproute2), 400 Mbit/s between them, a random Qwen3-MoE of four
layers, half of whose experts live on the other rank. Micro-batches are as long as it takes for their computation to be
as long as their communication, half of it, or twice. Bar: at least 1.4 times as fast where both are about equal, with
the same bits.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))

from moiety.plan import Plan
from moiety.runtime.bench import bench_step
from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.comm.priority import Priority
from moiety.runtime.engine import Engine
from moiety.runtime.model.load import load_model
from moiety.runtime.overlap import Turns
from moiety.runtime.seat import seat_of
from moiety.runtime.telemetry import Telemetry
from tests.ranks import run_ranks
from tests.runtime.plans import plan_of
from tests.two_tier import obstacle, two_tier

if TYPE_CHECKING:
    from tests.ranks import Place

RATE_BITS_PER_S = 400e6
REPEATS = 7
LEAST_SPEEDUP = 1.4
WAYS = {"one after the other": False, "in turns": True}
WIDTHS = {"half as much computation": 32, "about as much": 128, "twice as much": 384}
"""Of the experts: what a token computes grows with it, what it sends does not."""


def save_model(folder: Path, width: int) -> None:
    """Save a random model whose experts have that width."""
    config = transformers.Qwen3MoeConfig(
        hidden_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=1000,
        intermediate_size=512,
        num_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=width,
        max_position_embeddings=4096,
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def measure(place: Place, folder: str, document: str) -> dict[str, tuple[list[float], float, str]]:
    """Return, overlapped and not: seconds of each step, hidden share of its communication, bits of its states."""
    plan = Plan.model_validate_json(document)
    telemetry, turns = Telemetry(), Turns()
    network = place.network(observer=telemetry)
    model = load_model(seat_of(plan, place.rank), Checkpoint.open(folder), network, turns=turns, recorder=telemetry)
    engine = Engine(model, network, turns)
    world = network.group(tuple(range(place.num_ranks)), "bench", Priority.REDUCTION)
    step = bench_step(model, plan.pools[0].schedule)
    cache = engine.new_cache(step.num_slots, step.capacity)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    hidden: dict[str, list[float]] = {way: [] for way in WAYS}
    bits: dict[str, str] = {}
    for repeat in range(REPEATS + 1):
        for way, overlapped in WAYS.items():
            world.barrier()
            telemetry.begin()
            start_s = time.perf_counter()
            states = engine.states(step.batches, cache, overlapped=overlapped)
            world.barrier()
            seconds = time.perf_counter() - start_s
            telemetry.end()
            moving, waited = telemetry.communication()
            bits[way] = hashlib.sha256(b"".join(each.numpy().tobytes() for each in states)).hexdigest()
            if repeat:  # memory and connections are made in the first
                times[way].append(seconds)
                hidden[way].append(1 - waited / moving)
    network.close()
    return {way: (times[way], statistics.median(hidden[way]), bits[way]) for way in WAYS}


def main() -> int:
    """Print the table; return 0 when the bar holds."""
    parser = argparse.ArgumentParser(description="Two-batch overlap over a slow network.")
    parser.add_argument("--tokens", type=int, default=512, metavar="N", help="of a micro-batch")
    tokens = parser.parse_args().tokens
    reason = obstacle()
    if reason is not None:
        print(f"not measured: {reason}")
        return 0
    met = True
    for name, width in WIDTHS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            save_model(folder, width)
            plan = plan_of(folder, "tp1_dp2_ep2", 2, 1, overlap=True)
            schedule = plan.pools[0].schedule.model_copy(
                update={"num_microbatches": 2, "prefill_tokens": tokens, "prompt_tokens": tokens}
            )
            pool = plan.pools[0].model_copy(update={"schedule": schedule})
            document = plan.model_copy(update={"pools": (pool,)}).model_dump_json()
            with two_tier(2, RATE_BITS_PER_S) as nodes:
                ranks = run_ranks(measure, 2, str(folder), document, nodes=nodes, timeout_s=300.0)
        pairs = [[max(rank[way][0][repeat] for rank in ranks) for way in WAYS] for repeat in range(REPEATS)]
        speedup = statistics.median(plain / turns for plain, turns in pairs)
        plain, turns = (statistics.median(each) for each in zip(*pairs, strict=True))
        equal = all(len({rank[way][2] for way in WAYS}) == 1 for rank in ranks)
        alone, share = (statistics.mean(rank[way][1] for rank in ranks) for way in WAYS)
        print(
            f"{name:26} {plain:6.2f} s one after the other, {turns:6.2f} s in turns: {speedup:.2f}x; "
            f"hidden {share:.0%} ({alone:.0%}); {'the same bits' if equal else 'OTHER BITS'}"
        )
        met = met and equal and (name != "about as much" or speedup >= LEAST_SPEEDUP)
    print(f"bar: {LEAST_SPEEDUP}x where computation and communication are about equal: {'met' if met else 'NOT MET'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
