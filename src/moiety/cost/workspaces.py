"""What ops of our run time take beside their results: expanded weights, and on CPUs what its ways of computing need.

On CPUs rows are copied into the order of their experts, few of an expert are multiplied in a way that takes room, and
attention while decoding writes its scores down. Kernels of GPUs need none of that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from moiety.cost.expansion import Expansion
from moiety.cost.few_rows import are_few, room_items
from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.op import AttentionCore, Gemm
from moiety.graph.saved import CLAMPED_GATES, FP32_ROUTERS
from moiety.model.attention import GroupedQueryAttention, MultiHeadLatentAttention

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from moiety.cluster.device import Device
    from moiety.graph.graph import Graph
    from moiety.graph.op import Op
    from moiety.model.attention import Attention

_FP32, _INDEX = 4, 8
"""Bytes of an element, of an index."""
MOST_PAIRS = 1024
"""Of a row and a slot that a step of decoding has room for, whoever serves them: for these the work on those that are
served elsewhere is small."""
_CONVERTED_BYTES = 1 << 20
"""What the cached rows that are converted at a time take at most, unless those of one sequence take more."""
_STORED_AS_TAKEN = frozenset({"aria", "gpt_oss"})
"""Architectures whose experts transformers stores as products take them (`is_transposed`); others', and pairs of codes,
lie as rows of the inner size."""
_DENSE_DOWN = frozenset({"dense_down", "shared_down"})


class Workspace(NamedTuple):
    """Memory that an op takes beside its result, from one op to another (inclusive)."""

    name: str
    size_bytes: int
    first_op: int
    last_op: int


class _Noted(NamedTuple):
    """As much as can come to a rank's experts in a step of decoding, whatever the routers choose."""

    rows: int
    pairs: int
    """Of a row and an expert."""


class Workspaces(NamedTuple):
    """What the layers of a graph take beside the results of their ops where our run time computes them."""

    graph: Graph
    on_cpu: bool

    @classmethod
    def on(cls, device: Device, graph: Graph) -> Workspaces:
        """Return those of a graph on such a device."""
        return cls(graph, device.architecture == "cpu")

    @property
    def expansion(self) -> Expansion:
        """How weights are expanded."""
        return Expansion(self.on_cpu, self.graph.layout.options.dtypes.activations)

    def of_layer(self, kind: int) -> list[Workspace]:
        """Return what a layer of the model's block kind takes; ops are numbered as in the graph."""
        ops, attention = self.graph.layers[kind], self.graph.model.blocks[kind].attention
        last_use = {name: index for index, op in enumerate(ops) for name in op.inputs}
        found: list[Workspace] = []
        for index, op in enumerate(ops):
            last = last_use.get(op.name, index)
            room, until = self.expansion.of_op(op, last, index)
            found.append(Workspace(f"{op.name}.expanded", room, index, until))
            if not self.on_cpu:
                continue
            read = sum(
                each.output.size_bytes for each in ops[:index] if last_use.get(each.name) == index and each.output
            )
            sizes = dict(self._on_cpu(op, read, attention))
            found += [Workspace(f"{op.name}.{part}", size, index, index) for part, size in sizes.items()]
            found.append(Workspace(f"{op.name}.elsewhere", self._elsewhere_bytes(op), index, last))
        if self.on_cpu:
            found += self._of_shared_gate(kind, last_use)
            found += self._of_arrived(ops)
        if self.on_cpu and attention is not None:  # all layers share them
            size = self.graph.layout.tokens * _rotary_width(attention) * self._element_bytes
            found += [Workspace(name, int(size), 0, len(ops) - 1) for name in ("rotary.cosines", "rotary.sines")]
        return [each for each in found if each.size_bytes > 0]

    def of_head(self) -> list[Workspace]:
        """Return what the head takes: the logits of all ranks lie rank by rank before they do row by row."""
        ops, found = self.graph.head, list[Workspace]()
        for index, op in enumerate(ops):
            if op.name == "logits_all_gather" and op.output is not None:
                rows, columns = op.output.shape
                tp = self.graph.layout.strategy.tp
                both = int(2 * rows * math.ceil(columns / tp) * tp * self._element_bytes)
                parts = next(each.output.size_bytes for each in ops if each.name == "lm_head" and each.output)
                found.append(Workspace(f"{op.name}.by_rank", both - op.output.size_bytes - parts, index, index))
        return found

    @property
    def _element_bytes(self) -> float:
        return BYTES_PER_ELEMENT[self.graph.layout.options.dtypes.activations]

    def _on_cpu(self, op: Op, read: int, attention: Attention | None) -> Iterator[tuple[str, int]]:
        """Yield the bytes of what an op takes; it is the last to read `read` bytes, where its later tensors may lie."""
        work, model, schedule = op.work, self.graph.model, self.graph.layout.schedule
        there = read + (0 if op.output is None else op.output.size_bytes)
        if isinstance(work, Gemm) and work.experts:
            yield from self._of_experts(op, work, read)
        elif isinstance(work, Gemm) and op.name in _DENSE_DOWN:
            # two factors and their product, before there is a result
            yield "product", int(read + work.m * work.k * self._element_bytes) - there
        elif isinstance(work, Gemm) and op.name == "router" and model.architecture in FP32_ROUTERS:
            # its operands in FP32, as far as they are not that already
            rows = work.m + sum(each.shape[0] for each in op.weights if each.dtype != "fp32")
            yield "operands", 0 if self._element_bytes == _FP32 else int(_FP32 * rows * work.k)
        elif isinstance(work, AttentionCore) and attention is not None and not schedule.prefill_tokens:
            yield from self._of_attention(attention, there)

    def _of_shared_gate(self, kind: int, last_use: Mapping[str, int]) -> Iterator[Workspace]:
        """Yield what the gate of shared experts is computed of, after those of the router's choice."""
        moe, ops = self.graph.model.blocks[kind].moe, self.graph.layers[kind]
        if moe is not None and moe.shared_gate:
            size = next(op.output.size_bytes for op in ops if op.name == "post_norm" and op.output)
            last = next(index for index, op in enumerate(ops) if op.name == "expert_down")
            yield Workspace("shared_gate.rows", size, last_use["post_norm"] + 1, last)

    def _of_arrived(self, ops: Sequence[Op]) -> Iterator[Workspace]:
        """Yield what rows take that come from other groups, with their weights, beyond those that the plan expects."""
        order = {op.name: index for index, op in enumerate(ops)}
        if "dispatch" not in order or "expert_down" not in order:
            return
        first, last = order["dispatch"], order["expert_down"]
        arrived, down = ops[first].output, ops[last].work
        assert arrived is not None, "rows arrive"
        assert isinstance(down, Gemm), "it is a product"
        read = max(index for index, op in enumerate(ops) if "dispatch" in op.inputs)
        noted = self._noted(down)
        size = arrived.size_bytes if noted is None else noted.rows * arrived.size_bytes // arrived.shape[0]
        yield Workspace("dispatch.room", size - arrived.size_bytes, first, read)
        yield Workspace("dispatch.kept", size, read + 1, last)

    def _rows(self, work: Gemm) -> int:
        """Return the rows of an expert product."""
        noted = self._noted(work)
        return math.ceil(work.m) if noted is None else noted.pairs

    def _noted(self, work: Gemm) -> _Noted | None:
        """Return what a step has room for that is noted with its experts; None where those get what comes."""
        layout, moe = self.graph.layout, self.graph.model.moe
        assert moe is not None, "there are experts"
        each, rows = moe.top_k, self._most_sent()
        if layout.routes_tokens:
            is_flat = layout.options.all_to_all == "flat"
            rows *= layout.strategy.gpus_per_stage * (min(moe.top_k, work.slots) if is_flat else 1)
            each = 1 if is_flat else each
        else:
            rows *= layout.strategy.attn_dp
        return _Noted(rows, rows * each) if rows * each <= MOST_PAIRS and not layout.schedule.prefill_tokens else None

    def _most_sent(self) -> int:
        """Return how many tokens a rank may have for experts, beside other groups as many as those have room for."""
        layout = self.graph.layout
        if layout.strategy.attn_dp == 1:
            return layout.tokens
        most = tokens_with_room(layout.tokens)
        return math.ceil(most / layout.strategy.tp) if layout.routes_tokens else most

    def _elsewhere_bytes(self, op: Op) -> int:
        """Return what the result of an expert product has for rows of others' experts."""
        work = op.work
        if not isinstance(work, Gemm) or not work.experts or op.output is None:
            return 0
        return int(self._rows(work) * work.n * self._element_bytes) - op.output.size_bytes

    def _of_experts(self, op: Op, work: Gemm, read: int) -> Iterator[tuple[str, int]]:
        rows = self._rows(work)
        room = self._room_bytes(op, work, rows)
        if op.name != "expert_down" and not self.graph.layout.routes_tokens:  # it lies where the copied rows were
            room = max(room - read, 0)
        yield "room", room
        yield "weights", rows * _FP32
        yield "order", rows * _INDEX
        yield "bounds", (work.slots + 1) * _INDEX
        if op.name == "expert_down":
            # weighted outputs, and those in the order of their tokens, when factors and room are needed no more
            product = read * rows / max(int(work.m), 1) + rows * work.n * self._element_bytes + room
            yield "sums", int(2 * rows * work.n * _FP32 - product)
            return
        given = int(rows * work.k * self._element_bytes)
        yield "rows", given
        if self.graph.model.architecture in CLAMPED_GATES:  # a half once more, when rows and room are needed no more
            yield "gates", int(rows * work.n // 2 * self._element_bytes) - given - room

    def _room_bytes(self, op: Op, work: Gemm, rows: int) -> int:
        """Return what few rows of an expert are multiplied in (`runtime/experts/by_slot.py`)."""
        model, strategy = self.graph.model, self.graph.layout.strategy
        lies_in_rows = model.architecture not in _STORED_AS_TAKEN or op.weights[0].dtype == "mxfp4"
        all_here = strategy.ep == strategy.attn_dp == 1
        if work.activation_dtype != "fp32" or not lies_in_rows or (all_here and not are_few(rows, work.slots)):
            return 0
        return _FP32 * room_items(rows, work.k, work.n)

    def _of_attention(self, attention: Attention, there: int) -> Iterator[tuple[str, int]]:
        """Yield what attention of one new token of every sequence takes in FP32; `there` are bytes that are free."""
        layout = self.graph.layout
        sequences, kept = layout.schedule.decode_sequences, layout.schedule.context_tokens
        if isinstance(attention, GroupedQueryAttention):
            heads, kept = layout.share(attention.num_heads), min(kept, attention.sliding_window or kept)
            vectors, cached = 2 * attention.head_dim, 2 * layout.share(attention.num_kv_heads) * attention.head_dim
        elif isinstance(attention, MultiHeadLatentAttention):
            heads, rank, rotary = layout.share(attention.num_heads), attention.kv_lora_rank, attention.qk_rope_head_dim
            vectors, cached = 2 * rank + rotary, rank + rotary
        else:
            return
        yield "vectors", _FP32 * sequences * heads * vectors - there
        yield "scores", _FP32 * sequences * heads * (kept + 1)
        yield "probabilities", _FP32 * sequences * heads * (kept + 1)
        yield "hidden", sequences * kept
        if layout.options.dtypes.kv_cache != "fp32" and kept:
            yield "converted", _FP32 * min(converted_sequences(kept * cached), sequences) * kept * cached


def tokens_with_room(busiest: int) -> int:
    """Return how many tokens of each attention group a noted step has room for where the busiest has so many.

    Powers of two, so that groups of changing size meet in few kinds of steps.
    """
    return 1 << (max(busiest, 1) - 1).bit_length()


def converted_sequences(cached_elements: int) -> int:
    """Return of how many sequences, of so many elements each, cached rows are converted to FP32 at a time."""
    return max(_CONVERTED_BYTES // (_FP32 * cached_elements), 1)


def _rotary_width(attention: Attention) -> int:
    """Return the width of the cosines of a token's position, as many as a head turns at most."""
    if isinstance(attention, GroupedQueryAttention):
        return attention.head_dim
    return attention.qk_rope_head_dim if isinstance(attention, MultiHeadLatentAttention) else 0
