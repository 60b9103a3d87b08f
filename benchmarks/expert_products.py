"""What `benchmarks/gpu.py` times of a rank's experts: ours, torch's, those of libraries; and whether they are right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import grouped_mm, silu

from moiety.runtime.dispatch.wire import Rows
from moiety.runtime.experts.backends import BACKENDS
from moiety.runtime.experts.grouped import suits_grouped_mm
from moiety.runtime.experts.keys import KEY_BITS
from moiety.runtime.experts.libraries import deep_gemm_product, flashinfer_product
from moiety.runtime.experts.weights import ExpertWeights
from moiety.runtime.kernels.expert_mlp import SortedPairs, gated_rows, weighted_outputs
from moiety.runtime.kernels.tiles import group_rows
from moiety.runtime.kernels.token_sums import row_sums

if TYPE_CHECKING:
    from collections.abc import Callable

TOP_K = 8
SAMPLES = 8
"""Rows of each result that are computed in float64: the whole of a large shape would take minutes."""
LIBRARIES = {"flashinfer": flashinfer_product, "deep_gemm": deep_gemm_product}


@dataclass(frozen=True)
class Shape:
    """Experts of a rank, and the rows that each has on average."""

    hidden: int
    width: int
    experts: int
    rows: int


SHAPES = (
    Shape(2048, 768, 128, 1024),
    Shape(4096, 1536, 64, 1024),
    Shape(4096, 1536, 64, 2048),
    Shape(7168, 2048, 64, 1024),
    Shape(2048, 768, 128, 128),
    Shape(7168, 2048, 64, 256),
    Shape(2048, 768, 128, 1),
    Shape(2048, 768, 128, 8),
    Shape(4096, 1536, 128, 2),
    Shape(4096, 1536, 64, 4),
    Shape(7168, 2048, 256, 1),
    Shape(7168, 2048, 64, 8),
)


def gate(middle: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up."""
    first, second = middle.chunk(2, dim=-1)
    return silu(first) * second


@dataclass(frozen=True)
class Way:
    """One way to compute something: a call, and what its result holds of the i-th sorted pair, or of a token."""

    call: Callable[[], torch.Tensor]
    place: torch.Tensor | None = None
    """[pairs]: the row of the result that is the sorted pair's; None: they are in order."""


class RoutedExperts:
    """Random tokens with `TOP_K` experts each, and random experts, which lie as checkpoints have them."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
        tokens, hidden, width = max(1, shape.rows * shape.experts // TOP_K), shape.hidden, shape.width
        slots = torch.rand(tokens, shape.experts, device=device).topk(TOP_K, dim=1).indices
        given = torch.rand(tokens, TOP_K, device=device).softmax(dim=1)
        states = torch.randn(tokens, hidden, dtype=dtype, device=device)
        gate_up = torch.empty(shape.experts, 2 * width, hidden, dtype=dtype, device=device).normal_(0, hidden**-0.5)
        down = torch.empty(shape.experts, hidden, width, dtype=dtype, device=device).normal_(0, width**-0.5)
        self.rows = Rows(states, torch.arange(tokens, device=device), slots, given)
        self.weights = ExpertWeights(gate_up.transpose(1, 2), down.transpose(1, 2), None, None, gate)
        self.row = torch.arange(tokens, device=device).repeat_interleave(TOP_K)
        slot = slots.reshape(-1)
        self.keys, self.order = torch.sort((slot << KEY_BITS) + self.rows.keys[self.row])
        self.scale = given.reshape(-1)
        self.slot = slot[self.order]
        self.source, self.sorted_scale = self.row[self.order], self.scale[self.order][:, None]
        self.counts = torch.bincount(slot, minlength=shape.experts)
        self.offsets = self.counts.cumsum(0).to(torch.int32)
        self.first = torch.arange(tokens + 1, device=device) * TOP_K

    def pairs(self) -> SortedPairs:
        """Return the pairs as the kernels take them."""
        return SortedPairs(self.order, self.row, self.scale, group_rows(self.keys, self.weights.num_slots, KEY_BITS))

    def gathered(self) -> torch.Tensor:
        """Return the states of the sorted pairs."""
        return self.rows.hidden.index_select(0, self.source)

    def whole(self) -> dict[str, Way]:
        """Return the fused MLP and the unfused one over rows that are sorted already, sums [tokens, hidden] float32."""

        def fused() -> torch.Tensor:
            pairs = self.pairs()
            outputs = weighted_outputs(
                gated_rows(self.rows.hidden, self.weights.gate_up, pairs), self.weights.down, pairs
            )
            return row_sums(outputs, self.first, TOP_K)

        def unfused() -> torch.Tensor:
            middle = gate(grouped_mm(self.gathered(), self.weights.gate_up, offs=self.offsets))
            outputs = grouped_mm(middle, self.weights.down, offs=self.offsets).float() * self.sorted_scale
            outputs = torch.empty_like(outputs).index_copy_(0, self.order, outputs)
            return outputs.view(self.rows.slots.shape[0], TOP_K, -1).sum(dim=1)

        return {"ours": Way(fused), "torch": Way(unfused)}

    def gate_up(self) -> dict[str, Way]:
        """Return the first half: gather, product, gate, [pairs, width]; and of others the product alone."""
        gathered, pairs = self.gathered(), self.pairs()
        return {
            "ours": Way(lambda: gated_rows(self.rows.hidden, self.weights.gate_up, pairs)),
            "torch": Way(lambda: gate(grouped_mm(self.gathered(), self.weights.gate_up, offs=self.offsets))),
            **self._products(gathered, self.weights.gate_up),
        }

    def down(self, middle: torch.Tensor) -> dict[str, Way]:
        """Return the second half: product, weight, [pairs, hidden]; and of others the product alone."""
        pairs = self.pairs()
        return {
            "ours": Way(lambda: weighted_outputs(middle, self.weights.down, pairs), self.order),
            "torch": Way(lambda: grouped_mm(middle, self.weights.down, offs=self.offsets).float() * self.sorted_scale),
            **self._products(middle, self.weights.down),
        }

    def _products(self, rows: torch.Tensor, weights: torch.Tensor) -> dict[str, Way]:
        ways = {"torch, product alone": Way(lambda: grouped_mm(rows, weights, offs=self.offsets))}
        for name, product in LIBRARIES.items():
            if BACKENDS[name].obstacle(self.weights) is None:
                ways[f"{name}, product alone"] = Way(lambda product=product: product(rows, weights, self.counts))
        return ways

    def wrong(self) -> dict[str, float]:
        """Return by name how far sampled rows of every way are off float64's, of their norm."""
        assert suits_grouped_mm(self.weights), "torch multiplies by these weights"
        index = torch.randperm(self.slot.numel(), device=self.slot.device)[:SAMPLES]
        middle = self.gate_up()["torch"].call()
        products = self._sampled(self.rows.hidden, self.source, self.weights.gate_up, index)
        outputs = self._sampled(middle, None, self.weights.down, index)
        found = self._off("gate-up", self.gate_up(), index, gate(products), products)
        found |= self._off("down", self.down(middle), index, outputs * self.sorted_scale[index].double(), outputs)
        tokens = self.source[index][:1]
        expected = torch.zeros(1, self.rows.hidden.shape[1], dtype=torch.float64, device=tokens.device)
        for column, slot in enumerate(self.rows.slots[tokens[0]].tolist()):
            half = gate(self.rows.hidden[tokens].double() @ self.weights.gate_up[slot].double())
            expected += self.rows.weights[tokens, column].double() * (half @ self.weights.down[slot].double())
        return found | {f"whole, {name}": _apart(way.call()[tokens], expected) for name, way in self.whole().items()}

    def _sampled(
        self, rows: torch.Tensor, source: torch.Tensor | None, weights: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Return the products of some sorted pairs in float64, one expert's weights at a time."""
        taken = index if source is None else source[index]
        pairs = zip(taken.tolist(), self.slot[index].tolist(), strict=True)
        return torch.stack([rows[row].double() @ weights[slot].double() for row, slot in pairs])

    @staticmethod
    def _off(
        half: str, ways: dict[str, Way], index: torch.Tensor, whole: torch.Tensor, product: torch.Tensor
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, way in ways.items():
            expected = product if name.endswith("alone") else whole
            found[f"{half}, {name}"] = _apart(way.call()[index if way.place is None else way.place[index]], expected)
        return found


def _apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())
