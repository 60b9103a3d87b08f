"""A rank's experts as parameters: stored as transformers does, seen by the products as these take them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch

from moiety.runtime.checkpoint.expert_layout import KINDS
from moiety.runtime.experts.layer import ExpertLayer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moiety.runtime.checkpoint.expert_layout import ExpertKind
    from moiety.runtime.experts.weights import ExpertWeights


@dataclass(frozen=True, slots=True, eq=False)
class TrainedExperts:
    """The stacked parameters of a rank's slots in one layer, [slots, ...], in the layout of transformers."""

    stored: Mapping[ExpertKind, torch.Tensor]

    @classmethod
    def of(cls, layer: ExpertLayer) -> TrainedExperts:
        """Return the parameters that a layer's weights are views of, or are; sharded ones as such."""
        registered = dict(layer.named_parameters(recurse=False))
        if registered:
            return cls({kind: registered[kind] for kind in KINDS if kind in registered})
        return cls({kind: _base(each) for kind, each in _by_kind(layer.held.weights).items()})


def make_trainable(layer: ExpertLayer) -> None:
    """Replace a layer's weights by parameters, and views of them that gradients come through."""
    weights = layer.held.weights
    turned = _by_kind(_seen(weights, _by_kind(weights)))  # twice is not at all
    parameters: dict[ExpertKind, torch.Tensor] = {kind: torch.nn.Parameter(each) for kind, each in turned.items()}
    layer.held = replace(layer.held, weights=_seen(weights, parameters))


def register_parameters(layer: ExpertLayer) -> None:
    """Register a trainable layer's parameters with its module, for FSDP2 to shard and to gather.

    The layer sees what is gathered whenever it computes. Sharded or not, it holds nothing of them until then.
    """
    stored = TrainedExperts.of(layer).stored
    for kind, parameter in stored.items():
        layer.register_parameter(kind, cast("torch.nn.Parameter", parameter))
    shapes: dict[ExpertKind, torch.Tensor] = {
        kind: torch.empty_like(each, device="meta") for kind, each in stored.items()
    }
    layer.held = replace(layer.held, weights=_seen(layer.held.weights, shapes))
    layer.register_forward_pre_hook(_take_gathered)


def _take_gathered(layer: torch.nn.Module, _inputs: object) -> None:
    assert isinstance(layer, ExpertLayer), "it is registered with one"
    weights = _seen(layer.held.weights, TrainedExperts.of(layer).stored)
    layer.held = replace(layer.held, weights=weights)


def _by_kind(weights: ExpertWeights) -> dict[ExpertKind, torch.Tensor]:
    """Return weights by transformers' names, as products take them."""
    gate_up, down = weights.plain
    found: dict[ExpertKind, torch.Tensor | None] = {
        "gate_up_proj": gate_up,
        "down_proj": down,
        "gate_up_proj_bias": weights.gate_up_bias,
        "down_proj_bias": weights.down_bias,
    }
    return {kind: tensor for kind, tensor in found.items() if tensor is not None}


def _seen(weights: ExpertWeights, stored: Mapping[ExpertKind, torch.Tensor]) -> ExpertWeights:
    """Return weights with these in their place, which lie as transformers stores them, as products take them."""

    def product(kind: ExpertKind) -> torch.Tensor:
        return stored[kind] if weights.is_stored_so else stored[kind].transpose(1, 2)

    return replace(
        weights,
        gate_up=product("gate_up_proj"),
        down=product("down_proj"),
        gate_up_bias=stored.get("gate_up_proj_bias"),
        down_bias=stored.get("down_proj_bias"),
    )


def _base(view: torch.Tensor) -> torch.Tensor:
    base = view._base  # noqa: SLF001 - torch's name for what a view is of  # pyright: ignore[reportPrivateUsage]
    return view if base is None else base
