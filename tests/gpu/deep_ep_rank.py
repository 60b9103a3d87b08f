"""What a rank does in the tests of DeepEP: tokens exchanged by the library and by our own way, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moiety.runtime.comm.network import Network
from moiety.runtime.dispatch.deep_ep import check_deep_ep
from moiety.runtime.dispatch.exchange import StageShape
from moiety.runtime.dispatch.table import exchange_over
from moiety.runtime.experts.grouped import partial_outputs
from moiety.runtime.generation import device_of
from moiety.runtime.telemetry import Silent
from tests.runtime.dispatch.entry import tokens_of, weights_of

if TYPE_CHECKING:
    from moiety.runtime.dispatch.exchange import Exchange
    from moiety.runtime.experts.weights import ExpertWeights
    from moiety.runtime.post import Post, Report

HIDDEN, WIDTH, SLOTS_PER_RANK, TOP_K = 256, 64, 4, 3
TOKENS = ((5, 9), (300, 40), (0, 7), (64, 64))
"""Of each rank, by case."""


def exchange_both_ways(post: Post) -> Report:
    """Report how far the library's sums are from those of our exchange, and how large these are, case by case."""
    rank, size, device = post.world.rank, post.world.size, device_of(post)
    stage = StageShape(index=rank, num_gpus=size, gpus_per_node=size, slots_per_rank=SLOTS_PER_RANK, expert_tp=1)
    found: list[dict[str, object]] = []
    networks = [
        Network(
            rank=rank,
            world_size=size,
            store=post.store,
            tiers=post.job.plan.cluster.tiers,
            device=device,
            generation=number,
            transport=transport,
        )
        for number, transport in enumerate(("sockets", "deep_ep"))
    ]
    check_deep_ep(stage, torch.bfloat16, device)
    formats = torch.bfloat16, torch.bfloat16
    ours, library = (exchange_over("dedup", stage, each, tuple(range(size)), formats) for each in networks)
    for seed, tokens in enumerate(TOKENS):
        given = {
            "seed": seed,
            "tokens": tokens,
            "skew": 1.0,
            "hidden": HIDDEN,
            "width": WIDTH,
            "shape": {"num_gpus": size, "expert_tp": 1, "slots_per_rank": SLOTS_PER_RANK, "top_k": TOP_K},
        }
        hidden, slots, weights = (each.to(device) for each in tokens_of(given, rank))
        experts = weights_of(given, stage)
        held = type(experts)(experts.gate_up.to(device), experts.down.to(device), None, None, experts.gate)
        expected = _through(ours, hidden.bfloat16(), slots, weights, held)
        sums = _through(library, hidden.bfloat16(), slots, weights, held)
        found.append({"off": (sums - expected).norm().item(), "norm": expected.norm().item(), "rows": len(sums)})
    for each in networks:
        each.close()
    return {"rank": {"cases": found}}


def _through(
    exchange: Exchange, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, held: ExpertWeights
) -> torch.Tensor:
    under_way = exchange.begin(hidden, slots, weights)
    rows = under_way.arrive()
    wide = type(rows)(rows.hidden.float(), rows.keys, rows.slots, rows.weights)
    under_way.give_back(partial_outputs(wide, held, Silent(), 0))
    return under_way.finish()
