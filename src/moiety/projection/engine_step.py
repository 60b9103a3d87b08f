"""A step with its engine around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.projection.serving_pool import num_kernels

if TYPE_CHECKING:
    from moiety.calibration.calibration import EngineOverheads
    from moiety.graph.graph import Graph


def engine_step_s(engine: EngineOverheads, graph: Graph, kernels_s: float, sequences: int) -> float:
    """Return the seconds of a step whose kernels and transfers take `kernels_s`, with what the engine adds to them.

    `sequences` output tokens are sampled in each attention group. Steps that hold prompts run no captured graph.
    """
    gap_s = engine.eager_gap_s if graph.layout.schedule.prefill_tokens else engine.op_gap_s
    return (
        kernels_s * engine.kernel_slowdown
        + engine.step_overhead_s
        + num_kernels(graph) * gap_s
        + graph.model.num_moe_layers * engine.moe_layer_gap_s
        + sequences * engine.sequence_overhead_s
    )
