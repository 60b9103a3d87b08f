"""Arena: one piece of memory that all steps of a rank are computed in."""

from __future__ import annotations

import torch

from moiety.cost.arena import aligned


class Arena:
    """Memory in regions, one for each of the micro-batches that are under way at a time; it grows and never shrinks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sizes: list[int] = []
        self._regions: list[torch.Tensor] = []

    @property
    def size_bytes(self) -> int:
        """Bytes of all regions."""
        return sum(self._sizes)

    def region(self, number: int, size_bytes: int) -> torch.Tensor:
        """Return a region of at least so many bytes; always the same tensor, until a region has to grow."""
        sizes = self._sizes + [0] * (number + 1 - len(self._sizes))
        sizes[number] = max(sizes[number], aligned(size_bytes))
        if sizes != self._sizes:
            self._sizes = sizes
            with torch.inference_mode(mode=False):  # or only steps in that mode could write to it
                memory = torch.empty(sum(sizes), dtype=torch.uint8, device=self._device)
            self._regions = list(torch.split(memory, sizes))
        return self._regions[number]

    def has(self, region: torch.Tensor | None) -> bool:
        """Whether a region is one of those that are in use now."""
        return any(each is region for each in self._regions)
