"""Steps of decoding in the arena on several ranks: nothing is allocated, and the bits are those of steps without it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed import TCPStore

from moiety.runtime.arena.tape import Tape
from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.comm.network import Network
from moiety.runtime.engine import Engine
from moiety.runtime.model.batch import Segment
from moiety.runtime.model.load import load_model
from moiety.runtime.overlap import Turns
from moiety.runtime.seat import seat_of
from moiety.runtime.steady import decode_allocations, outside_arena
from tests.ranks import run_ranks
from tests.runtime.checkpoints import save_checkpoint
from tests.runtime.model.test_decoding import played_poisoned
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.plan import Plan
    from moiety.runtime.model.rank_model import RankModel
    from tests.ranks import Place

ONE_NODE: dict[str, dict[str, Any]] = {
    "tp2": {"strategy": "tp2"},
    "tp2, experts divided": {"strategy": "tp2_dp1_ep2"},
    "tp2, copies of experts": {"strategy": "tp2_dp1_ep2", "redundant": 2},
    "pp2": {"strategy": "tp1_pp2"},
    "dp2 ep2, flat": {"strategy": "tp1_dp2_ep2", "dispatch": "flat"},
    "dp2 ep2, dedup, copies": {"strategy": "tp1_dp2_ep2", "dispatch": "dedup", "redundant": 2},
    "dp2 etp2": {"strategy": "tp1_dp2_ep1"},
}
TWO_NODES: dict[str, dict[str, Any]] = {
    "dp4 ep4, dedup": {"strategy": "tp1_dp4_ep4", "dispatch": "dedup"},
    "dp4 ep4, hierarchical, copies": {"strategy": "tp1_dp4_ep4", "redundant": 4},
    "tp2 dp2 ep4, hierarchical, overlapped": {"strategy": "tp2_dp2_ep4", "overlap": True},
}
SIZES = [(2, 3, 1, 2)] * 3 + [(1, 3, 2, 3), (4, 1, 1, 1)] + [(0, 2, 1, 1)] * 4
"""Sequences of each attention group, step by step."""


@dataclass(frozen=True)
class Found:
    """Of a plan, on one rank."""

    allocations: int
    without_arena: int
    outside: list[str]
    has_equal_bits: bool
    num_played: int


def measure(place: Place, folder: str, plans: dict[str, Plan]) -> dict[str, Found]:
    """Return what a steady step of each plan asks for with and without the arena, and whether both give one result."""
    store = TCPStore(place.store_host, place.store_port, is_master=place.has_store, timeout=timedelta(seconds=60))
    found: dict[str, Found] = {}
    for number, (name, plan) in enumerate(plans.items()):
        tiers = plan.cluster.tiers
        network = Network(rank=place.rank, world_size=place.num_ranks, store=store, tiers=tiers, generation=number)
        turns = Turns()
        model = load_model(seat_of(plan, place.rank), Checkpoint.open(folder), network, turns=turns)
        plain = replace(model, decoding=None)
        engines = [Engine(each, network, turns, min_overlapped_tokens=2) for each in (model, plain)]
        counts = [decode_allocations(engine, each, 3) for engine, each in zip(engines, (model, plain), strict=True)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tape, "play", played_poisoned)
            equal = all(map(torch.equal, decoded(engines[0], model), decoded(engines[1], model)))
        assert model.decoding is not None
        num_played = model.decoding.document()["decode_steps_in_arena"]
        assert isinstance(num_played, int)
        found[name] = Found(counts[0], counts[1], outside_arena(model, draws=False), equal, num_played)
        network.close()
    return found


def decoded(engine: Engine, model: RankModel) -> list[torch.Tensor]:
    """Return the logits of steps of decoding in which groups have changing numbers of sequences, and one a prompt."""
    group, groups = model.seat.attention_group, model.seat.num_attention_groups
    cache = engine.new_cache(4, len(SIZES) + 12)
    found: list[torch.Tensor] = []

    def draw(logits: torch.Tensor) -> torch.Tensor:
        found.append(logits.clone())
        return logits.argmax(dim=-1)

    def step(rows: list[list[Segment]]) -> None:
        engine.step(rows[group], cache, draw, max(sum(len(each.token_ids) for each in row) for row in rows))

    step([[Segment(slot, 0, (slot, each, 7), emits=True) for slot in range(4)] for each in range(groups)])
    for number, sizes in enumerate(SIZES):
        rows = [
            [Segment(slot, 3 + number, (7 * slot + each + number,), emits=True) for slot in range(size)]
            for each, size in enumerate(sizes[:groups])
        ]
        if number == len(SIZES) // 2:
            rows[-1] = [Segment(0, 3 + number, tuple(range(9)), emits=True)]  # a prompt that is continued
        step(rows)
    return found


@pytest.mark.parametrize(("nodes", "divisions"), [(1, ONE_NODE), (2, TWO_NODES)])
def test_a_steady_step_allocates_nothing_and_has_the_same_bits(
    nodes: int, divisions: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    folder = save_checkpoint("qwen3_moe", tmp_path / "qwen3_moe")
    plans = {name: plan_of(folder, num_nodes=nodes, per_node=2, **each) for name, each in divisions.items()}
    for rank in run_ranks(measure, 2 * nodes, str(folder), plans, timeout_s=180.0):
        for name, found in rank.items():
            assert (found.allocations, found.outside) == (0, []), name
            assert found.without_arena > 100, name
            assert found.has_equal_bits, name
            assert found.num_played > 3, f"{name}: more than the steps whose requests are counted"
