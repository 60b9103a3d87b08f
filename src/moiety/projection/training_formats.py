"""Products of a training run that are in other formats than the run's own: parts of a layer, layers at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from moiety.cost.price import Pricer
from moiety.graph.graph import build_step_graph
from moiety.model.attention import LinearAttention

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moiety.calibration.calibration import Calibration
    from moiety.cost.price import OpPrice, PricedGraph
    from moiety.dtypes import Dtype
    from moiety.graph.op import Op
    from moiety.model.model import Block
    from moiety.projection.training_run import TrainingRun

Part = Literal["attention", "latent", "mamba_out", "predictions"]
"""Projections of softmax attention, of rows into the experts' latent and back, out of Mamba-2; layers of predictions."""
WIDE: Dtype = "bf16"
"""What layers that are kept out of narrow formats compute in."""


def priced_graphs(run: TrainingRun, calibration: Calibration) -> dict[Dtype, PricedGraph]:
    """Return the run's step priced in its own format, which comes first, and in each other that it uses."""
    own = run.options.dtypes.weights
    others = {*run.formats.values(), *([WIDE] if run.wide_layers else [])} - {own}
    return {each: _priced_graph(run, calibration, each) for each in (own, *sorted(others))}


def _priced_graph(run: TrainingRun, calibration: Calibration, dtype: Dtype) -> PricedGraph:
    dtypes = run.options.dtypes.model_copy(update={"weights": dtype, "experts": dtype})
    options = run.options.model_copy(update={"dtypes": dtypes})
    graph = build_step_graph(run.model, run.strategy, run.schedule, options, training=True)
    return Pricer(graph, run.cluster, calibration).priced_graph()


def layer_prices(
    graphs: Mapping[Dtype, PricedGraph], block: int, formats: Mapping[Part, Dtype], own: Dtype
) -> tuple[tuple[OpPrice, ...], tuple[OpPrice, ...]]:
    """Return the prices of a kind of layer, forward and backward: each op in its part's format, else in `own`."""
    kind = graphs[own].graph.model.blocks[block]

    def chosen(passes: Mapping[Dtype, tuple[OpPrice, ...]]) -> tuple[OpPrice, ...]:
        return tuple(
            passes[formats.get(part, own) if (part := _part(price.op, kind)) else own][index]
            for index, price in enumerate(passes[own])
        )

    return (
        chosen({dtype: graph.layers[block] for dtype, graph in graphs.items()}),
        chosen({dtype: graph.backward[block] for dtype, graph in graphs.items()}),
    )


def _part(op: Op, block: Block) -> Part | None:
    name = op.name.removesuffix(".backward")
    if name in {"latent_down", "latent_up"}:
        return "latent"
    if isinstance(block.attention, LinearAttention):
        return "mamba_out" if name == "o_proj" else None
    return "attention" if name in {"qkv_proj", "o_proj"} else None
