"""Replan: laws of the plan for whoever is left, of how it is handed over, and of the moves of a migration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.placement.migration.order import Move
from moiety.plan import MemoryPlan
from moiety.runtime.elastic.handover import Holding, transfers_of
from moiety.runtime.elastic.replan import CoverageLostError, held_by, layout_of
from moiety.runtime.elastic.schedule import Schedule, moved_placement
from moiety.runtime.seat import seat_of
from moiety.strategy.legality import broken_rules
from tests.runtime.checkpoints import save_config
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from moiety.placement.placement import Placement
    from moiety.plan import Plan
    from moiety.runtime.elastic.replan import Held

STRATEGIES = {
    "tp1_dp8_ep8": 0,
    "tp1_dp4_ep4_x2": 0,
    "tp2_dp4_ep8": 8,
    "tp2_dp4_ep4": 4,
    "tp1_dp8_ep4": 4,
    "tp2_dp2_ep4_pp2": 0,
    "tp4_dp2_ep2": 2,
}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    folder = save_config("mixtral", tmp_path_factory.mktemp("replan"))
    return {name: plan_of(folder, name, 2, 4, redundant=copies) for name, copies in STRATEGIES.items()}


def holders(plan: Plan, homes: set[int]) -> dict[int, Held]:
    return {home: held_by(plan, home) for home in homes}


@given(name=st.sampled_from(list(STRATEGIES)), alive=st.sets(st.integers(0, 7), min_size=1))
def test_whoever_is_left_has_a_legal_plan_that_holds_every_expert(
    plans: dict[str, Plan], name: str, alive: set[int]
) -> None:
    whole = plans[name]
    layout = layout_of(whole, holders(whole, alive))
    pool = layout.plan.pools[0]
    assert set(layout.homes) <= alive
    assert len(set(layout.homes)) == len(layout.homes)
    assert layout.plan.num_gpus == len(layout.homes) == layout.plan.cluster.num_gpus
    assert not broken_rules(whole.model, pool.strategy, layout.plan.options.redundant_experts)
    assert pool.placement is not None
    assert pool.placement.layers == whole.pools[0].placement.layers if whole.pools[0].placement else None
    seats = [seat_of(layout.plan, rank) for rank in range(layout.plan.num_gpus)]
    assert {layer for seat in seats for layer in seat.layers} == set(range(whole.model.num_layers))
    before = whole.pools[0].strategy
    if len(alive) == whole.num_gpus:
        assert pool.strategy == before
    if before.pp == before.instances == 1:
        width = max(before.tp, before.etp)
        units = sum(set(range(first, first + width)) <= alive for first in range(0, 8, width))
        assert not units or (pool.strategy.tp, pool.strategy.etp) == (before.tp, before.etp)
        assert len(layout.homes) >= units * width


@given(name=st.sampled_from(["tp1_dp8_ep8", "tp2_dp4_ep4"]), data=st.data())
def test_when_all_are_back_the_plan_is_the_whole_one(plans: dict[str, Plan], name: str, data: st.DataObject) -> None:
    whole = plans[name]
    alive = data.draw(st.sets(st.integers(0, 7), min_size=2, max_size=7))
    left = layout_of(whole, holders(whole, alive))
    held = holders(whole, alive) | {home: held_by(left.plan, rank) for rank, home in enumerate(left.homes)}
    back = layout_of(whole, held | {home: {} for home in set(range(8)) - alive})
    assert back.homes == tuple(range(8))
    assert back.plan.pools[0].strategy == whole.pools[0].strategy
    assert back.plan.cluster == whole.cluster
    assert back.plan.options == whole.options


def test_where_there_is_no_room_the_experts_are_named(plans: dict[str, Plan]) -> None:
    whole = plans["tp1_dp8_ep8"]
    kinds = {"expert_weights": 1000, "dense_weights": 500, "kv_cache": 400}
    memory = MemoryPlan(stage=0, bytes_by_kind=kinds, capacity_bytes=3000)
    tight = whole.model_copy(update={"pools": (whole.pools[0].model_copy(update={"memory": memory}),)})
    assert len(layout_of(tight, holders(whole, {0, 1, 2, 3})).homes) == 4
    with pytest.raises(CoverageLostError, match=r"2,900|3,900") as caught:
        layout_of(tight, holders(whole, {0, 1, 5}))
    assert "in layer 0 without a copy: experts 2, 3, 4, 6, 7" in str(caught.value)
    with pytest.raises(CoverageLostError, match="no rank is left"):
        layout_of(tight, {})


@given(name=st.sampled_from(["tp1_dp8_ep8", "tp2_dp4_ep8", "tp2_dp4_ep4", "tp1_dp8_ep4"]), data=st.data())
def test_experts_come_from_those_who_hold_them(plans: dict[str, Plan], name: str, data: st.DataObject) -> None:
    whole = plans[name]
    alive = data.draw(st.sets(st.integers(0, 7), min_size=2))
    layout = layout_of(whole, holders(whole, alive))
    etp = whole.pools[0].strategy.etp
    holdings = [Holding(held_by(whole, home), etp, home % etp) for home in layout.homes]
    transfers = transfers_of(layout.plan, holdings)
    for rank, holding in enumerate(holdings):
        seat = seat_of(layout.plan, rank)
        if (seat.strategy.etp, seat.coordinates["etp"]) != (etp, holding.part):
            continue
        for layer, experts in held_by(layout.plan, rank).items():
            coming = [each for each in transfers.get(layer, []) if each.target == rank]
            missing = set(experts) - set(holding.experts[layer])
            parts = [each for each in holdings if each.part == holding.part and each is not holding]
            there = {expert for each in parts for expert in each.experts[layer]}
            assert {each.expert for each in coming} <= missing & there
            assert len({each.expert for each in coming}) == len(coming)
            assert all(each.expert in holdings[each.source].experts[layer] for each in coming)


def swaps(placement: Placement, pairs: list[tuple[int, int, int]]) -> list[Move]:
    """Return steps of two moves that swap slots of a layer, each after those before it."""
    rows = [list(row) for row in placement.physical_to_logical_map]
    moves: list[Move] = []
    for step, (layer, one, other) in enumerate(pairs):
        row = rows[layer]
        moves += [Move(layer, one, row[other], other, step), Move(layer, other, row[one], one, step)]
        row[one], row[other] = row[other], row[one]
    return moves


@given(data=st.data(), most=st.integers(1, 9))
def test_batches_lead_to_the_map_that_the_moves_lead_to(plans: dict[str, Plan], data: st.DataObject, most: int) -> None:
    placement = plans["tp2_dp4_ep8"].pools[0].placement
    assert placement is not None
    slot = st.integers(0, placement.num_slots - 1)
    moves = swaps(placement, data.draw(st.lists(st.tuples(st.integers(0, 2), slot, slot), max_size=12)))
    rows = [list(row) for row in placement.physical_to_logical_map]
    for move in moves:
        rows[move.layer][move.slot] = move.expert
    schedule, now = Schedule(1), placement
    schedule.begin(now, moves, most)
    numbers: list[int] = []
    while (batch := schedule.next(now)) is not None:
        assert len(batch.moves) <= max(most, 2)
        for order in batch.moves:
            assert now.physical_to_logical_map[now.layers.index(order.layer)][order.source] == order.expert
        now = moved_placement(now, batch.moves)
        numbers.append(batch.number)
    assert now.physical_to_logical_map == tuple(tuple(row) for row in rows)
    assert numbers == list(range(1, len(numbers) + 1))
    assert not schedule.is_busy


@pytest.mark.parametrize(
    ("move", "words"),
    [
        (Move(9, 0, 0, 0, 0), "layer = 9: must be from 0 to 2"),
        (Move(0, 8, 0, 0, 0), "slot = 8: must be from 0 to 7"),
        (Move(0, 0, 8, 0, 0), "expert = 8: must be from 0 to 7"),
        (Move(0, 0, 1, 1, 0), "leaves no copy of expert 0 in layer 0"),
    ],
)
def test_moves_that_cannot_be_are_refused(plans: dict[str, Plan], move: Move, words: str) -> None:
    placement = plans["tp1_dp8_ep8"].pools[0].placement
    assert placement is not None
    schedule, harmless = Schedule(1), Move(0, 0, placement.physical_to_logical_map[0][0], 0, 0)
    with pytest.raises(InputError) as caught:
        schedule.begin(placement, [harmless, move._replace(step=1)], 1)
    assert f"moves[1].{words}" in str(caught.value) or f"moves[1]: {words}" in str(caught.value)
    assert not schedule.is_busy
    assert schedule.next(placement) is None, "nothing moves, not even what could"
