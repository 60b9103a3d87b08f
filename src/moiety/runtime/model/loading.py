"""Loading: a rank's model while it is being filled with its slices of the weights, and what they take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from moiety.runtime.block_scaled import BlockScaled
from moiety.runtime.expansion import room_bytes
from moiety.runtime.model.scaled_linear import ScaledLinear
from moiety.runtime.model.skeleton import meta_tensors
from moiety.runtime.model.slices import is_projection, parameter_slices

if TYPE_CHECKING:
    from moiety.model.attention import Attention
    from moiety.runtime.block_scaled import Weight
    from moiety.runtime.comm.group import Group
    from moiety.runtime.model.skeleton import Skeleton
    from moiety.runtime.model.supply import WeightSupply
    from moiety.runtime.seat import Seat
    from moiety.runtime.telemetry import Recorder


@dataclass(slots=True)
class Loading:
    """A rank's model while it is being filled."""

    seat: Seat
    skeleton: Skeleton
    supply: WeightSupply
    shapes: dict[str, tuple[int, ...]]
    """Of all parameters and persistent buffers of the whole model."""
    tp: Group
    device: torch.device
    recorder: Recorder
    in_fp8: bool
    """Whether projections are held in FP8."""
    expanded_bytes: int = 0
    """The most that a projection so far is expanded into for its product."""
    bytes_by_kind: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("dense_weights", "expert_weights"), 0))

    @property
    def tp_index(self) -> int:
        """Place of the rank in its tensor-parallel group."""
        return self.seat.coordinates["tp"]

    def fill(self, module: torch.nn.Module, prefix: str, attention: Attention | None) -> None:
        """Read what a module has without data; its names follow `prefix`, `attention` is that of its layer."""
        for name in tuple(meta_tensors(module)):
            weight = self._weight(module, name, prefix, attention)
            self.bytes_by_kind["dense_weights"] += weight.nbytes
            self.expanded_bytes = max(self.expanded_bytes, room_bytes(weight))
            _set(module, name, weight)

    def read(self, name: str, attention: Attention | None) -> torch.Tensor:
        """Return the rank's slice of a parameter or buffer in the format that transformers keeps it in."""
        return self.supply.dense(name, self._slices(name, attention), self.skeleton.tensors[name].dtype)

    def _weight(self, module: torch.nn.Module, name: str, prefix: str, attention: Attention | None) -> Weight:
        """Return the rank's slice; of projections in FP8 where the plan has them so."""
        path, _, leaf = name.rpartition(".")
        is_matrix = leaf == "weight" and isinstance(module.get_submodule(path), torch.nn.Linear)
        name = prefix + name
        if not (self.in_fp8 and is_matrix and is_projection(name)):
            return self.read(name, attention)
        return self.supply.matrix(name, self._slices(name, attention), self.skeleton.tensors[name].dtype)

    def _slices(self, name: str, attention: Attention | None) -> tuple[slice, ...]:
        shape, tp = self.shapes[name], self.seat.strategy.tp
        return parameter_slices(name, shape, attention, tp=tp, index=self.tp_index)


def parameter(tensor: torch.Tensor) -> torch.nn.Parameter:
    """Return a parameter that is not trained."""
    return torch.nn.Parameter(tensor, requires_grad=False)


def _set(module: torch.nn.Module, name: str, weight: Weight) -> None:
    """Put a weight where the parameter or buffer `name` of `module` was."""
    path, _, leaf = name.rpartition(".")
    owner: Any = module.get_submodule(path)
    if isinstance(weight, BlockScaled):
        module.set_submodule(path, ScaledLinear(weight, owner.bias))
        return
    is_parameter = isinstance(getattr(owner, leaf), torch.nn.Parameter)
    setattr(owner, leaf, parameter(weight) if is_parameter else weight)
