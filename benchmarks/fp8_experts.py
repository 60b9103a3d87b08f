"""What `benchmarks/gpu.py` times of experts that are held in FP8, beside what they stand for held in BF16.

Three ways over the same rows: our kernels over codes and scales; the same kernels over BF16, which takes twice the
memory; and all experts expanded into BF16 by one launch, then torch's products: what a run time without such kernels
does, in memory that it shares between layers.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from benchmarks.expert_products import RoutedExperts, Shape
from moiety.runtime.block_scaled import BlockScaled, block_index, quantised, stacked
from moiety.runtime.kernels.expanded_weights import expand_into

if TYPE_CHECKING:
    from collections.abc import Callable

FP8_SHAPES = (
    Shape(2048, 768, 128, 1),
    Shape(4096, 1536, 128, 2),
    Shape(7168, 2048, 256, 1),
    Shape(7168, 2048, 64, 8),
    Shape(2048, 768, 128, 128),
    Shape(4096, 1536, 64, 1024),
    Shape(7168, 2048, 64, 1024),
)
"""Decoding, where codes are half the bytes, and prompts, where making numbers of them is extra work."""


class Expansion(NamedTuple):
    """A stack that is expanded as one tall matrix."""

    out: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    row_block: torch.Tensor
    column_block: torch.Tensor

    @classmethod
    def of(cls, held: BlockScaled) -> Expansion:
        """Return the expansion of [slots, rows, columns]."""
        slots, rows, columns = held.shape
        blocks = held.scales.shape[1]
        each = torch.arange(slots, dtype=torch.int32, device=held.device) * blocks
        row_block = (each[:, None] + block_index(held.row_bounds, held.device)).view(-1)
        out = torch.empty(slots * rows, columns, dtype=held.dtype, device=held.device)
        flat = held.codes.view(slots * rows, columns), held.scales.view(slots * blocks, -1)
        return cls(out, *flat, row_block, block_index(held.column_bounds, held.device))


class HeldExperts:
    """Random experts in FP8, as checkpoints have them, and the numbers that these stand for."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.plain = RoutedExperts(shape, device)
        weights = self.plain.weights
        held = [stacked([quantised(each, torch.bfloat16) for each in stack.mT]) for stack in weights.plain]
        self.held_bytes = sum(each.nbytes for each in held)
        self._expansions = [Expansion.of(each) for each in held]
        self._expand()
        numbers = [made.out.view(each.shape).mT for made, each in zip(self._expansions, held, strict=True)]
        self.plain.weights = replace(weights, gate_up=numbers[0], down=numbers[1])
        self.held = copy(self.plain)
        self.held.weights = replace(weights, gate_up=held[0].mT, down=held[1].mT)

    def ways(self) -> dict[str, Callable[[], torch.Tensor]]:
        """Return by name what computes the tokens' sums, [tokens, hidden] float32."""
        plain = self.plain.whole()

        def expanded() -> torch.Tensor:
            self._expand()
            return plain["torch"].call()

        return {"FP8": self.held.whole()["ours"].call, "BF16": plain["ours"].call, "expanded": expanded}

    def _expand(self) -> None:
        for each in self._expansions:
            expand_into(*each)


def fp8_row(
    shape: Shape, seconds: Callable[[Callable[[], object]], float], limits: tuple[float, float], device: torch.device
) -> dict[str, Any]:
    """Return the figures of a shape; `limits`: bytes and FLOPs per second that the same run has measured."""
    experts = HeldExperts(shape, device)
    ways = experts.ways()
    results = {name: call().double() for name, call in ways.items()}
    expected = results["expanded"]
    apart = {name: float((each - expected).norm() / expected.norm()) for name, each in results.items()}
    slots = experts.plain.rows.slots
    pairs, used = slots.numel(), int(slots.unique().numel())
    taken = {name: seconds(call) for name, call in ways.items()}
    moved = experts.held_bytes * used / shape.experts + 4 * pairs * (shape.hidden + shape.width)
    moved += 4 * experts.plain.rows.hidden.numel()
    return {
        **vars(shape),
        "seconds": taken,
        "apart": apart,
        "of_bandwidth": moved / taken["FP8"] / limits[0],
        "of_product": 6 * pairs * shape.hidden * shape.width / taken["FP8"] / limits[1],
    }


def fp8_line(row: dict[str, Any]) -> str:
    """Return a shape's figures as a line."""
    taken = row["seconds"]
    times = ", ".join(f"{name} {each * 1e3:.2f}" for name, each in taken.items())
    return (
        f"{row['hidden']:6} {row['width']:5} {row['experts']:7} {row['rows']:4} | {times} ms;"
        f" {taken['BF16'] / taken['FP8']:.2f}x BF16, {taken['expanded'] / taken['FP8']:.2f}x expanded |"
        f" {row['of_product']:.0%} {row['of_bandwidth']:.0%} | {max(row['apart'].values()):.2%} apart"
    )
