"""A rank's experts as parameters: stored as transformers does, seen by the products as these take them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moiety.runtime.checkpoint.expert_layout import ExpertKind
    from moiety.runtime.experts.layer import ExpertLayer
    from moiety.runtime.experts.weights import ExpertWeights


@dataclass(frozen=True, slots=True, eq=False)
class TrainedExperts:
    """The stacked parameters of a rank's slots in one layer, [slots, ...], in the layout of transformers."""

    stored: Mapping[ExpertKind, torch.Tensor]

    @classmethod
    def of(cls, layer: ExpertLayer) -> TrainedExperts:
        """Return the parameters that a layer's weights are views of, or are."""
        weights = layer.held.weights
        gate_up, down = weights.plain
        found: dict[ExpertKind, torch.Tensor | None] = {
            "gate_up_proj": _base(gate_up),
            "down_proj": _base(down),
            "gate_up_proj_bias": weights.gate_up_bias,
            "down_proj_bias": weights.down_bias,
        }
        return cls({kind: tensor for kind, tensor in found.items() if tensor is not None})


def make_trainable(layer: ExpertLayer) -> None:
    """Replace a layer's weights by parameters, and views of them that gradients come through."""
    weights = layer.held.weights
    layer.held = replace(layer.held, weights=_trainable(weights))


def _trainable(weights: ExpertWeights) -> ExpertWeights:
    def product(stored: torch.Tensor) -> torch.Tensor:
        if weights.is_stored_so:
            return torch.nn.Parameter(stored)
        return torch.nn.Parameter(stored.transpose(1, 2)).transpose(1, 2)

    def bias(stored: torch.Tensor | None) -> torch.Tensor | None:
        return None if stored is None else torch.nn.Parameter(stored)

    gate_up, down = weights.plain
    return replace(
        weights,
        gate_up=product(gate_up),
        down=product(down),
        gate_up_bias=bias(weights.gate_up_bias),
        down_bias=bias(weights.down_bias),
    )


def _base(view: torch.Tensor) -> torch.Tensor:
    base = view._base  # noqa: SLF001 - torch's name for what a view is of  # pyright: ignore[reportPrivateUsage]
    return view if base is None else base
