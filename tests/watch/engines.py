"""Engines as the watch sees them: a server that shows their metrics, and dumps as SGLang's recorder writes them."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest

from moiety.control.policy import ClockPoint
from moiety.model.catalog import load_catalog_model
from moiety.watch.site import Site
from tests.control.deployments import deployment, plain_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np

Answer = tuple[int, dict[str, str], bytes]
URLS = ("http://10.0.0.1:1/metrics", "http://10.0.0.2:1/metrics", "http://10.0.0.3:1/metrics")


def site(*, instances: int = 1, interval_s: float = 60.0, **changes: object) -> Site:
    """Return instances of 4 ranks that hold 8 experts in 12 slots, in two layers."""
    of = deployment(4, 8, most_slots=4, **changes)
    each = tuple((url,) for url in URLS[:instances])
    return Site("small", load_catalog_model("mixtral-8x7b"), of, plain_map(of, 12), each, "sglang", interval_s)


POINTS = (ClockPoint(2e9, 0.05, 600.0), ClockPoint(1.5e9, 0.051, 480.0))


@dataclass
class Engine:
    """An engine that serves tokens and shows its counters under their real names."""

    kind: str = "sglang"
    address: str = ""
    answer: Callable[[], Answer] | None = None
    """What it answers instead, to behave badly."""
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        labels = ["model_name"]
        self.tokens = Counter(f"{self.kind}:generation_tokens", "Tokens.", labels, registry=self.registry)
        self.prompts = Counter(f"{self.kind}:prompt_tokens", "Tokens.", labels, registry=self.registry)
        self.times = Histogram(f"{self.kind}:inter_token_latency_seconds", "Latency.", labels, registry=self.registry)
        running = "num_requests_running" if self.kind == "vllm" else "num_running_reqs"
        Gauge(f"{self.kind}:{running}", "Requests.", labels, registry=self.registry).labels("m").set(float("nan"))
        if self.kind == "sglang":
            self.balance = Summary("sglang:eplb_balancedness", "Balance.", ["forward_mode"], registry=self.registry)
        self.serve(0)

    def serve(self, tokens: float, tpot_s: float = 0.02) -> None:
        """Generate tokens."""
        self.tokens.labels("m").inc(tokens)
        self.prompts.labels("m").inc(tokens)
        self.times.labels("m").observe(tpot_s)

    def text(self) -> bytes:
        """Return what it shows."""
        return generate_latest(self.registry)


@contextlib.contextmanager
def listening(engine: Engine, port: int = 0) -> Iterator[Engine]:
    """Let an engine answer during the block, with an address of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            default = (200, {"Content-Type": "text/plain; version=0.0.4"}, engine.text())
            code, headers, body = default if engine.answer is None else engine.answer()
            self.send_response(code)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    engine.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield engine
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def stat_dump(folder: Path, counts: np.ndarray, name: str) -> Path:
    """Write a dump as SGLang's recorder does in the mode `stat`: counts [passes, layers, experts] of all ranks."""
    path = folder / f"expert_distribution_recorder_{name}.pt"
    count = torch.tensor(counts, dtype=torch.int32)
    torch.save({"rank": 0, "logical_count": count, "average_utilization_rate_over_window": None}, path)
    return path


def pass_dump(
    folder: Path, counts: np.ndarray, slot_map: np.ndarray, name: str, *, rank: int = 0, first: int = 0
) -> Path:
    """Write a dump as SGLang's recorder does in the mode `per_pass`: counts [passes, layers, slots] of one rank."""
    path = folder / f"expert_distribution_recorder_{name}_{rank}.pt"
    passes = [
        {"forward_pass_id": at, "rank": rank, "gatherer_key": "primary", "global_physical_count": torch.tensor(each)}
        for at, each in enumerate(counts, first)
    ]
    torch.save({"records": passes, "last_physical_to_logical_map": torch.tensor(slot_map)}, path)
    return path
