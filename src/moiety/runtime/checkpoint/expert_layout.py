"""The layout of one expert in the model's stacked parameters, and where a slice of the intermediate size lies in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

ExpertKind: TypeAlias = Literal["gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias"]
KINDS: tuple[ExpertKind, ...] = get_args(ExpertKind)
_INTERLEAVED = frozenset({"gpt_oss"})
"""Architectures whose gate and up columns alternate; all others hold gate first, then up."""


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """How `transformers` lays out the experts of one layer."""

    transposed: bool
    """Gate and up are [hidden, 2 intermediate] and down is [intermediate, hidden], not the other way round."""
    interleaved: bool
    """Gate and up alternate."""
    intermediate_size: int

    @classmethod
    def of(cls, prefix: str, parameters: Mapping[str, tuple[int, ...]], model_type: str) -> ExpertLayout:
        """Return the layout of the experts at `prefix`, by the shapes of their two projections."""
        (_, rows, columns), (_, down_rows, down_columns) = (
            parameters[f"{prefix}.{kind}"] for kind in ("gate_up_proj", "down_proj")
        )
        transposed = columns == 2 * down_rows and rows == down_columns
        assert transposed or (rows == 2 * down_columns and columns == down_rows), prefix
        return cls(transposed, model_type in _INTERLEAVED, down_rows if transposed else down_columns)

    def axis(self, kind: ExpertKind) -> int | None:
        """Return the axis of one expert along the intermediate size; None for down's bias, which is per output."""
        axes: dict[ExpertKind, int | None] = {
            "gate_up_proj": 1 if self.transposed else 0,
            "down_proj": 0 if self.transposed else 1,
            "gate_up_proj_bias": 0,
            "down_proj_bias": None,
        }
        return axes[kind]

    def ranges(self, kind: ExpertKind, columns: range) -> tuple[range, ...]:
        """Return where along that axis a slice of the intermediate size lies: for gate and up, both of their parts."""
        if kind == "down_proj":
            return (columns,)
        if self.interleaved:
            return (range(2 * columns.start, 2 * columns.stop),)
        return tuple(range(columns.start + start, columns.stop + start) for start in (0, self.intermediate_size))
