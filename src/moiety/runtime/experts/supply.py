"""Where a rank's expert weights come from: the checkpoint, or whatever else holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from moiety.runtime.experts.weights import ExpertWeights

if TYPE_CHECKING:
    from moiety.runtime.checkpoint.weights import WeightSource
    from moiety.runtime.seat import Seat


class ExpertSupply(Protocol):
    """Gives a rank the weights of its slots."""

    def experts(
        self,
        seat: Seat,
        layer: int,
        prefix: str,
        module: Any,  # noqa: ANN401 - transformers' experts
        experts: tuple[int, ...],
    ) -> ExpertWeights:
        """Return the weights of the rank's slots in a layer, which hold `experts`.

        `prefix` is the name of the layer's expert parameters, `module` transformers' module, on the meta device.
        """
        ...


def read_experts(
    seat: Seat,
    module: Any,  # noqa: ANN401 - transformers' experts
    source: WeightSource,
    prefix: str,
    experts: tuple[int, ...],
    device: torch.device,
) -> ExpertWeights:
    """Return experts as the checkpoint holds them: whole, or this rank's columns under expert tensor parallelism."""
    etp, index = seat.strategy.etp, seat.coordinates["etp"]
    transposed = bool(module.is_transposed)
    width = module.down_proj.shape[1 if transposed else 2]
    columns = None if etp == 1 else slice(width // etp * index, width // etp * (index + 1))
    dtype = module.down_proj.dtype

    def stacked(kind: Any, part: slice | None) -> torch.Tensor:  # noqa: ANN401 - one of four names
        parts = [source.read_expert(prefix, kind, expert, part).to(dtype) for expert in experts]
        return torch.stack(parts).to(device)

    gate_up, down = stacked("gate_up_proj", columns), stacked("down_proj", columns)
    has_bias = bool(module.has_bias)
    return ExpertWeights(
        gate_up=gate_up if transposed else gate_up.transpose(1, 2),
        down=down if transposed else down.transpose(1, 2),
        gate_up_bias=stacked("gate_up_proj_bias", columns) if has_bias else None,
        down_bias=stacked("down_proj_bias", None) if has_bias and index == 0 else None,
        gate=module._apply_gate,  # noqa: SLF001 - transformers' name for the gate of an architecture
        is_stored_so=transposed,
    )
