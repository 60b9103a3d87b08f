"""FP32 masters of weights in another format: what the optimizer steps, so that small steps are not rounded away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


class Masters:
    """For each of a rank's parameters the tensor that an optimizer steps: itself in FP32, else its FP32 master."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        """Make a master, sharded as the parameter is, of each parameter that is not FP32."""
        self._masters = {
            each: torch.nn.Parameter(each.detach().float()) for each in parameters if each.dtype != torch.float32
        }

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """Return what is stepped for a parameter."""
        return self._masters.get(parameter, parameter)

    def held(self) -> list[torch.Tensor]:
        """Return the masters: what is there beside the parameters."""
        return list(self._masters.values())

    def take_gradients(self) -> None:
        """Give every master the gradient of its parameter."""
        for parameter, master in self._masters.items():
            assert parameter.grad is not None, "every parameter has a gradient before a step"
            master.grad = parameter.grad.float()

    @torch.no_grad()
    def give_back(self) -> None:
        """Round every master into its parameter, and let go of its gradient."""
        for parameter, master in self._masters.items():
            parameter.copy_(master)
            master.grad = None
