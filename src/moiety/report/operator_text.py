"""What is written into the boxes of the drawings: an op's name, its work and its tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.graph.op import AttentionCore, Collective, Gemm, MemoryPass, Op, Tensor
from moiety.model.attention import GroupedQueryAttention, MultiHeadLatentAttention
from moiety.units import format_si

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from moiety.cluster.cluster import Cluster
    from moiety.model.attention import Attention
    from moiety.model.model import Block

_WANTED = {
    "flat": "one row per token and expert",
    "dedup": "one row per token and GPU",
    "hierarchical": "one row per token and node",
}


def op_style(op: Op) -> str:
    """Return the style of a compute op's box, by its kind of work."""
    work = op.work
    if isinstance(work, Gemm):
        return "expert" if work.experts else "product"
    if isinstance(work, AttentionCore):
        return "attention"
    return "memory"


def op_lines(op: Op, inputs: Iterable[str]) -> tuple[str, ...]:
    """Return the lines of a compute op's box: name and work, then what goes in, the weights and what comes out."""
    amount = op_amount(op)
    lines = [f"{op.name} ({amount})" if amount else op.name]
    given = tuple(dict.fromkeys(inputs))
    if given:
        lines.append("in " + " + ".join(given))
    if op.weights:
        lines.append("w " + " + ".join(map(str, op.weights)))
    if op.output is not None:
        lines.append(f"out {op.output}")
    return tuple(lines)


def op_amount(op: Op) -> str:
    """Return an op's work on one GPU: its floating-point operations, or the bytes it moves if it has none."""
    work = op.work
    if isinstance(work, Collective):
        return ""
    if work.flops:
        return format_si(work.flops, "FLOP")
    return format_si(work.bytes, "B") if isinstance(work, MemoryPass) else ""


def shapes_into(op: Op, outputs: Mapping[str, Tensor | None], incoming: str) -> list[str]:
    """Return the tensors that an op reads, as text: `outputs` of its segment's ops, `incoming` the segment's input."""
    names = op.inputs or (() if op.prefetch else ("input",))
    shapes = [incoming if name == "input" else str(outputs.get(name) or "") for name in names]
    return [shape for shape in shapes if shape]


def exchange_rule(work: Collective) -> str:
    """Return how often a token's row travels, for dispatch and combine."""
    return _WANTED[work.method] if work.kind in {"dispatch", "combine"} else work.kind.replace("_", "-")


def tier_text(cluster: Cluster, tier: int) -> str:
    """Return a tier's name and what each GPU has of it."""
    return f"{cluster.tiers[tier].name} {format_si(cluster.bandwidth_per_gpu(tier), 'B/s')} per GPU"


def block_title(block: Block) -> str:
    """Return the name of a kind of layer, e.g. `GQA + MoE layer`, or of its only part."""
    parts = [] if block.attention is None else [_attention_title(block.attention)]
    if block.feed_forward is not None:
        parts.append("dense" if block.moe is None else "MoE")
    return f"{' + '.join(parts)} layer"


def _attention_title(attention: Attention) -> str:
    if isinstance(attention, GroupedQueryAttention):
        return "GQA" if attention.sliding_window is None else f"GQA (window {attention.sliding_window})"
    if isinstance(attention, MultiHeadLatentAttention):
        return "MLA"
    return "Mamba-2" if attention.variant == "mamba2" else "linear attention"


def part_text(part: int, parts: int) -> str:
    """Return which part of a thing, e.g. `half 1 of 2`; empty for the whole."""
    if parts == 1:
        return ""
    return f"{ {2: 'half', 4: 'quarter'}.get(parts, 'part') } {part + 1} of {parts}"
