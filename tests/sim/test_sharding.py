"""Sharded dense parameters in a simulated step: none where there are none, never more exposed than sent."""

from __future__ import annotations

import pytest

from moiety.cost.price import Pricer
from moiety.graph.training import held_dense_parameters
from moiety.plan import Options
from moiety.sim.sharding import ShardingTime, sharding_bytes, sharding_time
from moiety.sim.step import RankClass
from moiety.sim.timeline import Timeline, simulate_step
from moiety.strategy.strategy import Strategy
from tests.scenarios import CALIBRATION, graph_of, small_model, tiered

STRATEGY = Strategy(attn_dp=16, ep=16)
LAYERS = 6


def simulated(
    *, sharded: bool = True, rate: float = 50e9, checkpointed: frozenset[int] = frozenset()
) -> tuple[Timeline, ShardingTime]:
    """Return a step of training over links of `rate` between nodes, and what sharding takes of it."""
    options = Options(dense_parameter_sharding=sharded)
    graph = graph_of(small_model(num_layers=LAYERS), STRATEGY, "training", options)
    cluster = tiered(8, 16, per_node=8, bandwidths=(300e9, rate))
    prices = Pricer(graph, cluster, CALIBRATION).priced_graph()
    timeline = simulate_step([RankClass("all", 16, (prices,) * LAYERS)], checkpointed)
    return timeline, sharding_time(timeline, graph)


def test_without_sharding_nothing_is_sent() -> None:
    assert simulated(sharded=False)[1] == ShardingTime(0.0, 0.0)
    graph = graph_of(small_model(), STRATEGY, "training", Options())
    assert sharding_bytes(graph) == (0, 0)


@pytest.mark.parametrize("rate", [1e9, 10e9, 50e9, 1e15])
def test_no_more_is_exposed_than_is_sent_or_than_any_communication_is(rate: float) -> None:
    timeline, found = simulated(rate=rate)
    assert 0 < found.exposed_s <= found.transfer_s <= timeline.makespan_s
    assert found.exposed_s <= timeline.exposed_s[0] * (1 + 1e-9)
    # the first gather and the last scatter have nothing beside them
    assert found.exposed_s < 0.9 * found.transfer_s or rate < 50e9


def test_the_slower_the_link_the_more_is_exposed() -> None:
    exposed = [simulated(rate=rate)[1].exposed_s for rate in (50e9, 10e9, 1e9)]
    assert exposed == sorted(exposed)
    assert exposed[0] < exposed[-1]


def test_every_layer_is_gathered_twice_and_scattered_once_in_a_micro_batch_computed_again_or_not() -> None:
    model = small_model(num_layers=LAYERS)
    graph = graph_of(model, STRATEGY, "training", Options(dense_parameter_sharding=True))
    layer = held_dense_parameters(graph.layers[0], model.blocks[0], model.hidden_size)
    tables, microbatches = 2 * model.vocab_size * model.hidden_size, graph.layout.schedule.num_microbatches
    gathered, scattered = sharding_bytes(graph)
    assert gathered == microbatches * (2 * LAYERS * layer + tables) * 2  # bf16
    assert scattered == (microbatches * LAYERS * layer + tables) * 4  # summed in FP32
    plain, again = (simulated(checkpointed=frozenset(range(count)))[0] for count in (0, LAYERS))
    seconds = [
        sum(task.duration_s for task in timeline.steps.tasks if task.name.startswith("dense_gather"))
        for timeline in (plain, again)
    ]
    assert seconds[0] == pytest.approx(seconds[1])
