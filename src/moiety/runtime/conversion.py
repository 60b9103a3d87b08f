"""Between tensors and the numbers of Python and numpy: torch's own conversions, with their types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from moiety.runtime.arena.trace import is_noting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moiety.dtypes import Dtype


COMPUTED_DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The number formats of a plan that ranks compute in."""
WIRE_DTYPES: dict[Dtype, torch.dtype] = {**COMPUTED_DTYPES, "fp8": torch.float8_e4m3fn}
"""Those that tokens travel in to their experts, and that caches are kept in."""


def integers(tensor: torch.Tensor) -> list[int]:
    """Return the numbers of an integer vector."""
    assert not is_noting(), "a step that is noted may not depend on the content of a tensor"
    return cast("list[int]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType] - torch leaves it untyped


def from_array(array: NDArray[Any]) -> torch.Tensor:
    """Return a tensor over the memory of an array."""
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType] - as above
