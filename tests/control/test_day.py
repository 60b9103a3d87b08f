"""A simulated day: the same to the bit, quiet where nothing happens, and true to what it was told of faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from moiety.cluster.catalog import load_device
from moiety.control.day.conditions import Conditions, parse_faults
from moiety.control.day.simulate import simulate_day
from moiety.control.policy import ClockPoint, Deployment, Policy
from moiety.errors import InputError
from tests.control.deployments import deployment, plain_map

if TYPE_CHECKING:
    from moiety.control.day.report import Day

STEADY = Conditions(demand_noise=0.0, scatter=0.0, walk_spread=0.0, hot_rise=1.0)
EVEN = np.full((2, 16), 1 / 16)
POINTS = (ClockPoint(2e9, 0.05, 500.0), ClockPoint(1.5e9, 0.051, 400.0), ClockPoint(1e9, 0.07, 300.0))


def day_of(
    of: Deployment, *faults: str, conditions: Conditions = STEADY, hours: float = 2.0, seed: int = 0, slots: int = 24
) -> Day:
    return simulate_day(
        of,
        plain_map(of, slots),
        EVEN,
        load_device("h100"),
        Policy(),
        conditions,
        top_k=2,
        hours=hours,
        faults=parse_faults(faults, of, hours),
        seed=seed,
    )


def test_the_same_seed_gives_the_same_day_and_another_one_another() -> None:
    of = deployment(tokens_per_s_per_node=5e4, clock_points=POINTS)
    one = day_of(of, "gpu:3@0.5", conditions=Conditions())
    assert one == day_of(of, "gpu:3@0.5", conditions=Conditions())
    assert one != day_of(of, "gpu:3@0.5", conditions=Conditions(), seed=1)


def test_a_quiet_day_decides_nothing_and_saves_nothing() -> None:
    day = day_of(deployment(), slots=16)
    assert day.commands == day.moves == {}
    assert day.energy_saved_share == 0
    assert day.served_share == day.windows_within_slo_share == 1


def test_a_lost_rank_is_fenced_after_the_timeout_and_taken_back_when_repaired() -> None:
    day = day_of(deployment(), "gpu:3@0.503", hours=3)
    (found,) = day.recoveries
    assert found.fenced_after_s is not None
    assert found.served_after_s is not None
    assert found.back_after_s is not None
    policy = Policy()
    assert policy.patience.silent_s < found.fenced_after_s <= policy.patience.silent_s + STEADY.beat_s + 1e-9
    assert found.fenced_after_s <= found.served_after_s < found.back_after_s
    assert found.back_after_s >= STEADY.repair_s
    assert day.refused_s == pytest.approx(found.served_after_s)


@pytest.mark.parametrize(
    ("ranks", "changes", "fenced_after_s"),
    [(1, {"gpus_per_rank": 8}, STEADY.repair_s), (8, {"group_ranks": 8}, Policy().patience.silent_s)],
)
def test_a_fault_that_leaves_no_rank_is_overcome_when_it_is_repaired(
    ranks: int, changes: dict[str, int], fenced_after_s: float
) -> None:
    """Whoever is alone and silent may go on elsewhere; who has come back empty does not."""
    of = deployment(ranks, **changes)
    day = day_of(of, "gpu:3@0.503", hours=3, slots=16)
    (found,) = day.recoveries
    assert found.fenced_after_s is not None
    assert found.served_after_s is not None
    assert fenced_after_s <= found.fenced_after_s <= fenced_after_s + STEADY.beat_s + 1e-9
    assert STEADY.repair_s < found.served_after_s < STEADY.repair_s + STEADY.start_s + 10.0
    assert found.back_after_s == found.served_after_s
    assert day.refused_s == pytest.approx(found.served_after_s)
    assert day.fewest_nodes == 0
    assert day.served_share < 1


def test_what_no_slot_is_left_for_is_refused_until_the_rank_is_back() -> None:
    day = day_of(deployment(most_slots=2), "gpu:3@0.503", hours=3, slots=16)
    (found,) = day.recoveries
    assert found.served_after_s is not None
    assert found.served_after_s >= STEADY.repair_s
    assert day.commands["Refuse"] == day.commands["Resume"] == 1


def test_a_slower_checkpoint_takes_longer() -> None:
    of = deployment(most_slots=3)
    fast, slow = (
        day_of(of, "gpu:3@0.503", slots=16, conditions=Conditions(storage_bytes_per_s=rate)).recoveries[0]
        for rate in (2e9, 2e7)
    )
    assert fast.served_after_s is not None
    assert slow.served_after_s is not None
    assert slow.served_after_s > fast.served_after_s + 1


def test_the_clock_and_fewer_nodes_save_energy() -> None:
    idle = day_of(deployment(tokens_per_s_per_node=5e4))
    locked = day_of(deployment(tokens_per_s_per_node=5e4, clock_points=POINTS))
    assert locked.clock_hz == POINTS[1].clock_hz
    assert idle.clock_hz is None
    assert locked.fewest_nodes < locked.most_nodes
    assert idle.energy_saved_share > 0
    assert 0 < locked.energy_saved_share < 1


def test_a_gpu_that_is_cooled_badly_loses_load() -> None:
    poor = Conditions(demand_noise=0.0, scatter=0.0, walk_spread=0.0, hot_rise=5.0, hot_from=0.0, hot_until=0.02)
    hot = day_of(deployment(), conditions=poor, hours=1.0)
    assert hot.moves["heat"] > 0
    assert "heat" not in day_of(deployment(), hours=1.0).moves
    assert hot.served_share == 1


@pytest.mark.parametrize("text", ["gpu:99", "gpu", "node:2", "gpu:1@24", "gpu:1@x", "link:nvlink", ""])
def test_faults_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--fail"):
        parse_faults([text], deployment(), 24.0)
