"""Traces with a structure that is known, and scenarios that were measured on them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from moiety.search.options import default_options
from moiety.search.planner import make_plan
from moiety.strategy.strategy import parse_strategy
from moiety.workload.routing import Routing
from tests.scenarios import moe, prefill_load, scenario, small_model, tiered

if TYPE_CHECKING:
    from moiety.plan import Plan
    from moiety.projection.scenario import Scenario

EXPERTS, TOP_K, LAYERS = 16, 4, 3


def planted_routing(num_tokens: int = 4000, seed: int = 0) -> Routing:
    """Return tokens of two topics: one takes mostly even experts, the other odd ones, low numbers more often."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(2, size=num_tokens)
    expert = np.arange(EXPERTS)
    logits = np.where(topic[:, None] == expert % 2, 4.0, 0.0) - 0.1 * expert
    noisy = logits + rng.gumbel(size=(LAYERS, num_tokens, EXPERTS))
    topk = np.argsort(-noisy, axis=2)[:, :, :TOP_K]
    counts = np.stack([np.bincount(layer.ravel(), minlength=EXPERTS) for layer in topk]).astype(np.float64)
    return Routing(counts=counts[None], topk=topk)


def routed_scenario(*spans: int, per_node: int = 4, traced: bool = True) -> Scenario:
    """Return prompts on nodes whose tiers of links span so many GPUs (8 in two nodes), with the planted routing."""
    routing = planted_routing()
    part = moe(EXPERTS, TOP_K)
    model = small_model(part=part, num_layers=LAYERS + 1, dense_layers=1)
    case = scenario(model, tiered(*(spans or (4, 8)), per_node=per_node), prefill_load(65_536))
    shares = tuple(tuple(row) for row in routing.load_share().tolist())
    return replace(case, expert_shares=shares, routing=routing if traced else None)


@cache
def routed_plan(redundant: int = 8, *, traced: bool = True) -> Plan:
    """Return the finished plan of expert parallelism over all GPUs of two nodes for the planted routing."""
    case = routed_scenario(traced=traced)
    options = default_options(case, redundant)
    pinned = parse_strategy("ep8_tp1", 8)
    return make_plan(case, options, name="routed", version="test", pinned=pinned).plan
