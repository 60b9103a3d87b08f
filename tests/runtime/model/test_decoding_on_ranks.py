"""Allocations of a step of decoding on several ranks: none inside an attention group, stages and copies too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch.distributed import TCPStore

from moiety.plan import Plan
from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.comm.network import Network
from moiety.runtime.engine import Engine
from moiety.runtime.model.load import load_model
from moiety.runtime.overlap import Turns
from moiety.runtime.seat import seat_of
from moiety.runtime.steady import decode_allocations, outside_arena
from tests.ranks import run_ranks
from tests.runtime.checkpoints import save_checkpoint
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ranks import Place

ALL_INSIDE: dict[str, dict[str, Any]] = {
    "tp2": {"strategy": "tp2"},
    "tp2, experts divided": {"strategy": "tp2_dp1_ep2"},
    "tp2, copies of experts": {"strategy": "tp2_dp1_ep2", "redundant": 2},
    "pp2": {"strategy": "tp1_pp2"},
}
EXCHANGED: dict[str, dict[str, Any]] = {
    "dp2 ep2, flat": {"strategy": "tp1_dp2_ep2", "dispatch": "flat"},
    "dp2 ep2, dedup": {"strategy": "tp1_dp2_ep2", "dispatch": "dedup"},
    "dp2 etp2": {"strategy": "tp1_dp2_ep1"},
}


@dataclass(frozen=True)
class Found:
    """Of a plan, on one rank."""

    allocations: int
    without_arena: int
    outside: list[str]


def measure(place: Place, folder: str, plans: dict[str, str]) -> dict[str, Found]:
    """Return what a steady step of each plan asks for, with and without the arena."""
    store = TCPStore(place.store_host, place.store_port, is_master=place.has_store, timeout=timedelta(seconds=60))
    found: dict[str, Found] = {}
    for number, (name, document) in enumerate(plans.items()):
        plan = Plan.model_validate_json(document)
        tiers = plan.cluster.tiers
        network = Network(rank=place.rank, world_size=2, store=store, tiers=tiers, generation=number)
        model = load_model(seat_of(plan, place.rank), Checkpoint.open(folder), network)
        plain = replace(model, decoding=None)
        with_arena, without = (decode_allocations(Engine(each, network, Turns()), each, 3) for each in (model, plain))
        found[name] = Found(with_arena, without, outside_arena(model, draws=False))
        network.close()
    return found


def test_a_step_allocates_only_where_groups_exchange_tokens(tmp_path: Path) -> None:
    folder = save_checkpoint("qwen3_moe", tmp_path / "qwen3_moe")
    plans = {
        name: plan_of(folder, per_node=2, **division).model_dump_json()
        for name, division in (ALL_INSIDE | EXCHANGED).items()
    }
    for rank in run_ranks(measure, 2, str(folder), plans):
        for name in ALL_INSIDE:
            assert (rank[name].allocations, rank[name].outside) == (0, []), name
            assert rank[name].without_arena > 100, name
        for name in EXCHANGED:
            assert 0 < rank[name].allocations < 0.7 * rank[name].without_arena, name
            assert rank[name].outside, name
