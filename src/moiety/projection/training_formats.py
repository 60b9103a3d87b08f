"""Products of a training run that are in other formats than the run's own: parts of a layer, layers at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from moiety.model.attention import LinearAttention

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moiety.cost.price import OpPrice, PricedGraph
    from moiety.dtypes import Dtype
    from moiety.graph.op import Op
    from moiety.model.model import Block

Part = Literal["attention", "latent", "mamba_out", "predictions"]
"""Projections of softmax attention, into the experts' latent and back, out of Mamba-2; layers of predictions."""
WIDE: Dtype = "bf16"
"""What layers that are kept out of narrow formats compute in."""


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
