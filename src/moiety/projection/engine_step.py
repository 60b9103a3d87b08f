"""A step with its engine around it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from moiety.graph.op import Collective

if TYPE_CHECKING:
    from moiety.calibration.calibration import EngineOverheads
    from moiety.graph.graph import Graph
    from moiety.projection.step import StepOutcome


def engine_step_s(
    engine: EngineOverheads, graph: Graph, kernels_s: float, sequences: int, *, captured_prompts: bool = False
) -> float:
    """Return the seconds of a step whose kernels and transfers take `kernels_s`, with what the engine adds to them.

    `sequences` output tokens are sampled in each attention group.
    """
    passed_s = engine_pass_s(engine, graph, kernels_s, captured_prompts=captured_prompts)
    return passed_s + engine.step_overhead_s + sequences * engine.sequence_overhead_s


def engine_pass_s(engine: EngineOverheads, graph: Graph, kernels_s: float, *, captured_prompts: bool = False) -> float:
    """Return the seconds of a step's kernels with what the engine leaves between them.

    Steps that hold prompts run no captured graph unless those are captured too.
    """
    eager = graph.layout.schedule.prefill_tokens and not captured_prompts
    return (
        kernels_s * engine.kernel_slowdown
        + num_kernels(graph) * (engine.eager_gap_s if eager else engine.op_gap_s)
        + graph.model.num_moe_layers * engine.moe_layer_gap_s
    )


def kernels_period_s(outcome: StepOutcome) -> float:
    """Return the seconds until the kernels of a sequence's next token: its way through all stages, or its turn."""
    microbatches = outcome.graph.layout.schedule.num_microbatches
    through = outcome.step_s - outcome.steady_s * (microbatches - 1) / microbatches
    return max(outcome.steady_s, through)


def num_kernels(graph: Graph) -> int:
    """Return the ops of a step that run on the compute stream."""
    counts = Counter(graph.model.layer_blocks)
    parts = [(graph.layers[block], count) for block, count in counts.items()]
    parts += [(graph.embedding, 1), (graph.head, 1)]
    return sum(count * sum(not isinstance(op.work, Collective) for op in ops) for ops, count in parts)
