"""Where a rank's expert weights come from: the checkpoint, or whatever else holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from moiety.runtime.block_scaled import stacked
from moiety.runtime.experts.weights import ExpertWeights

if TYPE_CHECKING:
    from moiety.runtime.block_scaled import CodeFormat, Weight
    from moiety.runtime.checkpoint.expert_layout import ExpertKind
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
        *,
        codes: CodeFormat | None,
    ) -> ExpertWeights:
        """Return the weights of the rank's slots in a layer, which hold `experts`; the same way in every call.

        `prefix` is the name of the layer's expert parameters, `module` transformers' module, on the meta device;
        `codes`: the format that the plan has them in, where ranks hold them in that.
        """
        ...


def read_experts(
    seat: Seat,
    module: Any,  # noqa: ANN401 - transformers' experts
    source: WeightSource,
    prefix: str,
    experts: tuple[int, ...],
    device: torch.device,
    *,
    codes: CodeFormat | None,
) -> ExpertWeights:
    """Return experts as the checkpoint holds them: whole, or this rank's columns under expert tensor parallelism.

    `codes`: their projections are held so where the checkpoint gives them (`WeightSource.gives`).
    """
    etp, index = seat.strategy.etp, seat.coordinates["etp"]
    transposed = bool(module.is_transposed)
    width = module.down_proj.shape[1 if transposed else 2]
    columns = None if etp == 1 else slice(width // etp * index, width // etp * (index + 1))
    dtype = module.down_proj.dtype

    def read(kind: ExpertKind, part: slice | None) -> torch.Tensor:
        parts = [source.read_expert(prefix, kind, expert, part).to(dtype) for expert in experts]
        return torch.stack(parts).to(device)

    def projection(kind: ExpertKind) -> Weight:
        if codes is not None and source.gives(f"{prefix}.{kind}", codes):
            parts = [source.read_expert_codes(prefix, kind, expert, columns, dtype, codes) for expert in experts]
            return stacked(parts).to(device)
        return read(kind, columns)

    gate_up, down = projection("gate_up_proj"), projection("down_proj")
    has_bias = bool(module.has_bias)
    return ExpertWeights(
        gate_up=gate_up if transposed else gate_up.mT,
        down=down if transposed else down.mT,
        gate_up_bias=read("gate_up_proj_bias", columns) if has_bias else None,
        down_bias=read("down_proj_bias", None) if has_bias and index == 0 else None,
        gate=module._apply_gate,  # noqa: SLF001 - transformers' name for the gate of an architecture
        is_stored_so=transposed,
    )
