"""Bytes that a forward pass keeps for the backward pass."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch.autograd.graph import saved_tensors_hooks

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    import torch


@dataclass(slots=True)
class SavedTensors:
    """What autograd has kept since: distinct storages and their sizes."""

    size_by_address: dict[int, int] = field(default_factory=dict[int, int])

    @property
    def size_bytes(self) -> int:
        """Bytes of all of them; two tensors in one storage count once."""
        return sum(self.size_by_address.values())


@contextmanager
def counting_saved(parameters: Iterable[torch.Tensor]) -> Generator[SavedTensors]:
    """Count what autograd keeps during the block, all but the parameters and views of them.

    The graph must live to the end of the block, so that no storage takes the address of another. A layer that computes
    its activations again keeps its input, which counts.
    """
    held = {each.untyped_storage().data_ptr() for each in parameters}
    saved = SavedTensors()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        base = tensor if tensor._base is None else tensor._base  # noqa: SLF001 - torch's name for what a view is of  # pyright: ignore[reportPrivateUsage]
        storage = tensor.untyped_storage()
        is_parameter = base.is_leaf and base.requires_grad
        if storage.data_ptr() not in held and not is_parameter:
            saved.size_by_address[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
