"""Where a rank's weights come from, when its model is built: from the checkpoint, slice by slice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from moiety.runtime.checkpoint.weights import WeightSource
from moiety.runtime.experts.supply import ExpertSupply, read_experts

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from moiety.runtime.block_scaled import CodeFormat, Weight
    from moiety.runtime.checkpoint.index import Checkpoint
    from moiety.runtime.experts.weights import ExpertWeights
    from moiety.runtime.seat import Seat


class WeightSupply(ExpertSupply, Protocol):
    """Gives a rank its part of the weights."""

    def open(self, checkpoint: Checkpoint, parameters: Mapping[str, tuple[int, ...]]) -> None:
        """Take note of the model's parameters, by name with their full shapes; InputError where they are not there."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes read from the checkpoint so far."""
        ...

    def dense(self, name: str, slices: tuple[slice, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a slice of a parameter or persistent buffer, whole along the axes that `slices` leaves out."""
        ...

    def matrix(self, name: str, slices: tuple[slice, ...], dtype: torch.dtype) -> Weight:
        """Return a slice of a matrix in FP8, for products in `dtype`.

        What an FP8 checkpoint itself keeps in another format is returned in `dtype`.
        """
        ...


class CheckpointSupply:
    """Every weight is read, once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._source: WeightSource | None = None

    def open(self, checkpoint: Checkpoint, parameters: Mapping[str, tuple[int, ...]]) -> None:
        """Compare the model with the checkpoint; see `WeightSupply`."""
        self._source = WeightSource(checkpoint, parameters)
        self._source.check()

    @property
    def source(self) -> WeightSource:
        """The checkpoint's weights."""
        assert self._source is not None, "it is opened first"
        return self._source

    @property
    def bytes_read(self) -> int:
        """Bytes read from the checkpoint so far."""
        return self.source.bytes_read

    def dense(self, name: str, slices: tuple[slice, ...], dtype: torch.dtype) -> torch.Tensor:
        """Read a slice; see `WeightSupply`."""
        return self.source.read(name, *slices, dtype=dtype).to(self._device)

    def matrix(self, name: str, slices: tuple[slice, ...], dtype: torch.dtype) -> Weight:
        """Read a slice; see `WeightSupply`."""
        if not self.source.gives(name, "fp8"):
            return self.dense(name, slices, dtype)
        return self.source.read_codes(name, *slices, dtype=dtype, codes="fp8").to(self._device)

    def experts(
        self,
        seat: Seat,
        layer: int,
        prefix: str,
        module: Any,  # noqa: ANN401 - as in `ExpertSupply`
        experts: tuple[int, ...],
        *,
        codes: CodeFormat | None,
    ) -> ExpertWeights:
        """Read experts; see `ExpertSupply`."""
        del layer
        return read_experts(seat, module, self.source, prefix, experts, self._device, codes=codes)
