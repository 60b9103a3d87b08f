"""What ranks do in the exchange tests: tokens sent every way, and what came of it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.distributed import TCPStore

from moiety.runtime.comm.network import Network
from moiety.runtime.dispatch.exchange import NotedExchange, StageShape
from moiety.runtime.dispatch.hierarchical import NUM_CHUNKS
from moiety.runtime.dispatch.table import exchange_over
from moiety.runtime.experts.grouped import partial_outputs
from moiety.runtime.experts.weights import ExpertWeights
from moiety.runtime.telemetry import Silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.cluster.cluster import LinkTier
    from moiety.plan import AllToAll
    from moiety.runtime.dispatch.exchange import Exchange
    from tests.ranks import Place

NOTED = ", noted"
"""What is sent as in a step that is noted."""
METHODS = ("flat", "dedup", "hierarchical", "hierarchical, one chunk")
METHODS += tuple(method + NOTED for method in METHODS)
WIRE = {"fp32": torch.float32, "fp8": torch.float8_e4m3fn}


def run_cases(place: Place, tiers: Sequence[LinkTier], cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Send every case's tokens every way; return the sums as hexadecimal, so that bits are compared."""
    found: list[dict[str, Any]] = []
    store = TCPStore(place.store_host, place.store_port, is_master=place.has_store, timeout=timedelta(seconds=60))
    for number, case in enumerate(cases):
        sizes = {key: size for key, size in case["shape"].items() if key != "top_k"}
        shape = StageShape(index=place.rank, **sizes)
        outcomes: dict[str, Any] = {}
        for turn, method in enumerate(METHODS):
            network = Network(
                rank=place.rank,
                world_size=place.num_ranks,
                store=store,
                tiers=tuple(tiers),
                generation=number * len(METHODS) + turn,
                timeout_s=60.0,
            )
            exchange = exchange_of(method, shape, network, WIRE[case.get("dispatch", "fp32")])
            outcomes[method] = _through(exchange, shape, case, place.rank, is_noted=method.endswith(NOTED))
            outcomes[method]["sent"] = network.traffic.snapshot()["exchange"]["sent_bytes"]
            network.close()
        found.append(outcomes)
    return found


def exchange_of(name: str, shape: StageShape, network: Network, dispatch: torch.dtype) -> Exchange:
    """Return the exchange of that name over all ranks."""
    method = cast("AllToAll", name.partition(",")[0])
    num_chunks = 1 if "one chunk" in name else NUM_CHUNKS
    ranks = tuple(range(shape.num_gpus))
    return exchange_over(method, shape, network, ranks, (dispatch, torch.float32), num_chunks=num_chunks)


def _through(
    exchange: Exchange, shape: StageShape, case: dict[str, Any], rank: int, *, is_noted: bool
) -> dict[str, Any]:
    hidden, slots, weights = tokens_of(case, rank)
    if is_noted:
        assert isinstance(exchange, NotedExchange)
        under_way = exchange.noted(hidden, slots, weights, max(case["tokens"]))
    else:
        under_way = exchange.begin(hidden, slots, weights)
    arrived = under_way.arrive()
    under_way.give_back(partial_outputs(arrived, weights_of(case, shape), Silent(), 0))
    sums = under_way.finish()
    return {"sums": sums.numpy().tobytes().hex(), "rows": arrived.hidden.shape[0]}


def tokens_of(case: dict[str, Any], rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (states, slots, weights) of a rank's tokens."""
    generator = torch.Generator().manual_seed(case["seed"] + rank)
    tokens, shape = case["tokens"][rank], case["shape"]
    num_slots = shape["num_gpus"] // shape["expert_tp"] * shape["slots_per_rank"]
    scores = torch.rand(tokens, num_slots, generator=generator) ** case["skew"]
    slots = scores.topk(shape["top_k"], dim=1).indices if tokens else torch.zeros(0, shape["top_k"], dtype=torch.int64)
    hidden = torch.randn(tokens, case["hidden"], generator=generator)
    return hidden, slots, torch.rand(tokens, shape["top_k"], generator=generator)


def weights_of(case: dict[str, Any], shape: StageShape) -> ExpertWeights:
    """Return the weights of a rank's slots: of each slot, the columns that the rank holds."""
    width, held = case["width"], case["width"] // shape.expert_tp
    columns = slice(held * (shape.index % shape.expert_tp), held * (shape.index % shape.expert_tp + 1))
    gate_up, down = [], []
    for slot in range(shape.first_slot, shape.first_slot + shape.slots_per_rank):
        generator = torch.Generator().manual_seed(1000 + slot)
        up = torch.randn(case["hidden"], 2, width, generator=generator)[:, :, columns]
        gate_up.append(up.reshape(case["hidden"], 2 * held))
        down.append(torch.randn(width, case["hidden"], generator=generator)[columns])
    return ExpertWeights(torch.stack(gate_up), torch.stack(down), None, None, gated)


def gated(middle: torch.Tensor) -> torch.Tensor:
    """Return SwiGLU's product of gate and up."""
    gate, up = middle.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up
