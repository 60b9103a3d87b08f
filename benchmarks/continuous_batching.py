"""Continuous batching beside one request at a time, on the same server; and the gap that a killed rank leaves.

A float32 Qwen3-MoE of 17 M parameters on two CPU ranks. Bars: sixteen requests together at least twice as many tokens a
second as one after the other; the longest gap of a stream whose rank is killed at most 2 s.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.runtime.checkpoints import save_checkpoint
from tests.serve.servers import planned, send, served

if TYPE_CHECKING:
    from tests.serve.servers import Server

LEAST_SPEEDUP, MOST_GAP_S = 2.0, 2.0
REQUESTS, TOKENS, STREAMED = 16, 64, 256
SIZES = {"hidden_size": 256, "num_hidden_layers": 6, "moe_intermediate_size": 192, "num_experts": 16}


def seconds(server: Server, clients: int) -> float:
    """Return what all requests take with so many of them in flight."""
    prompts = [[1 + number, 7, 9, 20 + number] for number in range(REQUESTS)]
    began_s = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda prompt: server.complete(prompt, TOKENS), prompts))
    return time.perf_counter() - began_s


def gap_s(server: Server) -> float:
    """Return the longest time between two tokens of a stream, of whose ranks one is killed in the middle."""
    body = {"prompt": [5, 6, 7], "max_tokens": STREAMED, "stream": True, "return_token_ids": True}
    times: list[float] = []
    with server.client as client, client.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {") and json.loads(line.removeprefix("data: "))["choices"][0]["token_ids"]:
                times.append(time.perf_counter())
            if len(times) == STREAMED // 4 and line:
                send(server.ranks()[1]["pid"], signal.SIGKILL)
    return max(later - earlier for earlier, later in pairwise(times))


def main() -> int:
    """Print the figures; return 0 when the bars hold."""
    parser = argparse.ArgumentParser(description="Continuous batching beside one request at a time.")
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = save_checkpoint("qwen3_moe", folder / "model", **SIZES)
        plan = planned(folder / "plan", checkpoint, "local:2", "tp1_dp2_ep2")
        ratios: list[float] = []
        with served(plan, checkpoint, "--max-restarts", "0") as server:
            seconds(server, REQUESTS)
            for _ in range(runs):
                alone_s, together_s = seconds(server, 1), seconds(server, REQUESTS)
                ratios.append(alone_s / together_s)
                tokens = REQUESTS * TOKENS
                print(
                    f"{tokens / alone_s:.0f} tokens/s one at a time, {tokens / together_s:.0f} together: "
                    f"{ratios[-1]:.2f}x"
                )
            gap = gap_s(server)
    speedup = sorted(ratios)[len(ratios) // 2]
    met = speedup >= LEAST_SPEEDUP and gap <= MOST_GAP_S
    print(f"median {speedup:.2f}x (bar {LEAST_SPEEDUP}); longest gap of a killed rank {gap:.2f} s (bar {MOST_GAP_S} s)")
    print(f"bars: {'met' if met else 'NOT MET'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
