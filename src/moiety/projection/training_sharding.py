"""Transfers of fully sharded training: weights gathered before every use, gradients scattered after it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from moiety.cost.collective import collective_transfer
from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.training import held_dense_parameters, routed_parameters

if TYPE_CHECKING:
    from moiety.calibration.calibration import Calibration
    from moiety.cluster.cluster import Cluster
    from moiety.graph.graph import Graph
    from moiety.graph.layout import Layout
    from moiety.strategy.strategy import Strategy


def sharding_s(graph: Graph, cluster: Cluster, calibration: Calibration) -> float:
    """Return the seconds of a step's gathering and scattering, one after the other, of the mean pipeline stage.

    Every micro-batch gathers a layer's weights twice, forward and backward, in the products' format, and scatters their
    gradients in that of activations: dense weights over all attention groups, experts over the copies of them.
    """
    layout, model = graph.layout, graph.model
    strategy = layout.strategy
    everyone = _copies_of_dense_weights(strategy)
    copies = strategy.groups("instance")[0]
    per_microbatch = 0.0
    for block, count in Counter(model.layer_blocks).items():
        dense = held_dense_parameters(graph.layers[block], model.blocks[block], model.hidden_size)
        routed = routed_parameters(model.blocks[block], model.hidden_size) / (strategy.ep * strategy.etp)
        per_microbatch += count * (
            _moved_s(layout, cluster, calibration, dense, everyone)
            + _moved_s(layout, cluster, calibration, routed, copies)
        )
    return per_microbatch * layout.schedule.num_microbatches / strategy.pp


def _copies_of_dense_weights(strategy: Strategy) -> tuple[int, ...]:
    """Return the ranks of the first stage, of all copies, that hold the same dense weights as the first rank."""
    return tuple(
        first + inside
        for first in strategy.groups("instance")[0]
        for inside in range(0, strategy.gpus_per_stage, strategy.tp)
    )


def _moved_s(
    layout: Layout, cluster: Cluster, calibration: Calibration, elements: float, ranks: tuple[int, ...]
) -> float:
    dtypes = layout.options.dtypes
    gathered = elements * BYTES_PER_ELEMENT[dtypes.weights]
    scattered = elements * BYTES_PER_ELEMENT[dtypes.activations]
    gather = collective_transfer("all_gather", gathered, ranks, cluster, calibration)
    scatter = collective_transfer("reduce_scatter", scattered, ranks, cluster, calibration)
    return 2 * gather.seconds + scatter.seconds
