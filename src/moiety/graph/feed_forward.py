"""Ops of a layer's feed-forward part on one GPU: dense, or a mixture of experts with its dispatch and combine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from moiety.dtypes import BYTES_PER_ELEMENT, ROW_BYTES_PER_ELEMENT
from moiety.graph.attention import gemm_op
from moiety.graph.op import Collective, Gemm, MemoryPass, Op, Tensor
from moiety.model.feed_forward import DenseFeedForward

if TYPE_CHECKING:
    from moiety.graph.layout import Layout
    from moiety.model.feed_forward import FeedForward, MoeFeedForward


def feed_forward_ops(
    part: FeedForward, hidden_size: int, layout: Layout, after: str | None, *, has_norm_behind: bool = False
) -> list[Op]:
    """Return the ops from the attention's output (op `after`), or the layer's input if none, to the layer's output.

    `post_norm` adds the attention's output to the layer's input, in whose place the sum lies to the end.
    """
    act = layout.options.dtypes.activations
    tokens = layout.tokens
    before = ("input",) if after is None else ("input", after)
    moved = (1 + len(before)) * tokens * hidden_size * BYTES_PER_ELEMENT[act]
    ops = [Op("post_norm", MemoryPass(moved), before, Tensor("ffn_in", (tokens, hidden_size), act))]
    if isinstance(part, DenseFeedForward):
        ops += _network("dense", part.intermediate_size, hidden_size, layout, gated=part.gated)
    else:
        ops += _moe(part, hidden_size, layout)
    ends = ("dense_down",) if isinstance(part, DenseFeedForward) else _moe_ends(part, layout)
    if layout.strategy.tp > 1:
        payload = tokens * hidden_size * BYTES_PER_ELEMENT[act]
        output = Tensor("ffn_out_reduced", (tokens, hidden_size), act)
        ops.append(Op("ffn_all_reduce", Collective("all_reduce", "tp", payload), ends, output))
        ends = ("ffn_all_reduce",)
    if has_norm_behind:
        ops.append(norm_behind("ffn_out_norm", ends, hidden_size, layout))
        ends = ("ffn_out_norm",)
    return [*ops, residual_add(ends, hidden_size, layout)]


def norm_behind(name: str, after: tuple[str, ...], hidden_size: int, layout: Layout) -> Op:
    """Return a norm of what a part made (the sum of what ops `after` put out)."""
    out = Tensor(
        name.removesuffix("_norm") + "_normed", (layout.tokens, hidden_size), layout.options.dtypes.activations
    )
    return Op(name, MemoryPass((1.0 + len(after)) * out.size_bytes), after, out)


def residual_add(after: tuple[str, ...], hidden_size: int, layout: Layout) -> Op:
    """Return the op that adds what a layer made (ops `after`) to its input."""
    hidden = Tensor("hidden", (layout.tokens, hidden_size), layout.options.dtypes.activations)
    return Op("residual_add", MemoryPass(3.0 * hidden.size_bytes), ("input", *after), hidden)


def _moe_ends(part: MoeFeedForward, layout: Layout) -> tuple[str, ...]:
    """Return the ops whose outputs add up to the layer's: routed experts, back where they belong, and shared ones."""
    routed = _returned(layout) if part.latent_size is None else "latent_up"
    return (routed, "shared_down") if part.shared_intermediate_size else (routed,)


def _returned(layout: Layout) -> str:
    """Return the op after which the routed experts' sums are back where their tokens belong."""
    if layout.routes_tokens:
        return "combine"
    return "token_reduce_scatter" if layout.strategy.attn_dp > 1 else "expert_down"


def _into(*, gated: bool) -> tuple[str, int]:
    """Return the name of the product that goes into a network's width, and how many of that width it emits."""
    return ("gate_up", 2) if gated else ("up", 1)


def _network(prefix: str, intermediate_size: int, hidden_size: int, layout: Layout, *, gated: bool) -> list[Op]:
    """Return the products of a dense or shared feed-forward network, split column-row over TP."""
    width = layout.share(intermediate_size)
    tokens = layout.tokens
    name, parts = _into(gated=gated)
    into = gemm_op(
        f"{prefix}_{name}",
        f"{prefix}_mid",
        tokens,
        parts * width,
        hidden_size,
        "post_norm",
        layout,
        matrices=(width,) * parts,
    )
    ops = [into]
    ops += _activation(f"{prefix}_activation", tokens, (width, parts), ops[-1].name, layout, experts=False)
    ops.append(gemm_op(f"{prefix}_down", f"{prefix}_out", tokens, hidden_size, width, ops[-1].name, layout))
    return ops


def _activation(
    name: str, rows: float, shape: tuple[int, int], after: str, layout: Layout, *, experts: bool
) -> list[Op]:
    """Return the activation as an op of its own, where it is not fused into the products.

    `shape` is its width and how many rows of that width it makes one of.
    """
    if layout.options.fused_kernels:
        return []
    act, (width, parts) = layout.options.dtypes.activations, shape
    moved = (parts + 1.0) * rows * width * BYTES_PER_ELEMENT[act]
    return [Op(name, MemoryPass(moved, experts=experts), (after,), Tensor(name, (int(rows), width), act))]


def moves_tokens(op: Op) -> bool:
    """Return whether an op takes tokens to the ranks of their routed experts."""
    return op.name in {"dispatch", "token_all_gather"}


def of_shared_experts(op: Op) -> bool:
    """Return whether an op is part of a layer's shared experts."""
    return op.name.startswith("shared_")


def starts_shared_experts(op: Op) -> bool:
    """Return whether an op is the first of a layer's shared experts."""
    return of_shared_experts(op) and op.inputs == ("post_norm",)


def expert_rows(part: MoeFeedForward, layout: Layout) -> float:
    """Return the rows that one GPU's experts get of a micro-batch when experts are loaded equally."""
    return layout.stage_tokens * part.top_k / layout.strategy.ep


def touched_experts(part: MoeFeedForward, layout: Layout) -> float:
    """Return how many of a GPU's expert slots get at least one token, expected over uniform routing."""
    slots = (part.num_experts + layout.options.redundant_experts) / layout.strategy.ep
    missed = (1 - part.top_k / part.num_experts) ** layout.stage_tokens
    return slots * (1 - missed)


def _moe(part: MoeFeedForward, hidden_size: int, layout: Layout) -> list[Op]:
    dtypes, strategy = layout.options.dtypes, layout.strategy
    tokens = layout.tokens
    router = Gemm(tokens, part.num_experts, hidden_size, dtypes.activations, dtypes.critical)
    logits = Tensor("router_logits", (tokens, part.num_experts), dtypes.critical)
    held = "fp32" if part.router_in_fp32 else dtypes.activations
    weight = (Tensor("router.weight", (part.num_experts, hidden_size), held),)
    ops = [Op("router", router, ("post_norm",), logits, weight)]
    row, rows_from, arrive = part.row_size(hidden_size), "post_norm", "router"
    if part.latent_size is not None:
        # whole on every rank
        rows_from = "latent_down"
        ops.append(gemm_op(rows_from, "latent", tokens, row, hidden_size, "post_norm", layout))
    if layout.routes_tokens:
        ops.append(_exchange("dispatch", (rows_from, "router"), row, layout, expert_rows(part, layout)))
        arrive = "dispatch"
    elif strategy.attn_dp > 1:
        gathered = Tensor("gathered", (layout.stage_tokens, row), dtypes.dispatch, has_row_scales=True)
        work = Collective("all_gather", "attn_dp", gathered.size_bytes)
        ops.append(Op("token_all_gather", work, (rows_from, "router"), gathered))
        arrive = "token_all_gather"
    elif part.latent_size is not None:
        arrive = rows_from
    if part.shared_intermediate_size:
        ops += _network("shared", part.shared_intermediate_size, hidden_size, layout, gated=part.gated)
    ops += _experts(part, row, layout, arrive)
    if layout.routes_tokens:
        ops.append(_exchange("combine", ("expert_down",), row, layout, tokens))
    elif strategy.attn_dp > 1:
        whole = layout.stage_tokens * row * ROW_BYTES_PER_ELEMENT[dtypes.combine]
        output = Tensor("scattered", (tokens, row), dtypes.activations)
        ops.append(Op("token_reduce_scatter", Collective("reduce_scatter", "attn_dp", whole), ("expert_down",), output))
    if part.latent_size is not None:
        ops.append(gemm_op("latent_up", "routed_out", tokens, hidden_size, row, _returned(layout), layout))
    return ops


def _exchange(
    kind: Literal["dispatch", "combine"], after: tuple[str, ...], row_size: int, layout: Layout, rows: float
) -> Op:
    dtypes = layout.options.dtypes
    dtype = dtypes.dispatch if kind == "dispatch" else dtypes.combine
    row_bytes = row_size * ROW_BYTES_PER_ELEMENT[dtype]
    work = Collective(
        kind,
        "stage",
        row_bytes,
        tokens=layout.tokens,
        method=layout.options.all_to_all,
    )
    return Op(kind, work, after, Tensor(f"{kind}ed_rows", (max(int(rows), 1), row_size), dtype, has_row_scales=True))


def _experts(part: MoeFeedForward, row_size: int, layout: Layout, arrive: str) -> list[Op]:
    """Return the grouped products of the routed experts, whose width is split over expert TP."""
    dtypes = layout.options.dtypes
    rows, groups = expert_rows(part, layout), touched_experts(part, layout)
    width = part.expert_intermediate_size // layout.strategy.etp
    slots = (part.num_experts + layout.options.redundant_experts) // layout.strategy.ep
    act, (name, parts) = dtypes.activations, _into(gated=part.gated)
    ops: list[Op] = []
    if not layout.options.fused_kernels:
        moved = 2.0 * rows * row_size * BYTES_PER_ELEMENT[act]
        permuted = Tensor("permuted", (max(int(rows), 1), row_size), act)
        ops.append(Op("expert_permute", MemoryPass(moved, experts=True), (arrive,), permuted))
    up = Gemm(rows, parts * width, row_size, dtypes.experts, act, groups, experts=True, slots=slots)
    ops.append(
        Op(
            f"expert_{name}",
            up,
            (ops[-1].name if ops else arrive,),
            Tensor("expert_mid", (max(int(rows), 1), parts * width), act),
            (Tensor(f"experts.{name}", (slots, parts * width, row_size), dtypes.experts),),
        )
    )
    ops += _activation("expert_activation", rows, (width, parts), ops[-1].name, layout, experts=True)
    down = Gemm(rows, row_size, width, dtypes.experts, act, groups, experts=True, slots=slots)
    ops.append(
        Op(
            "expert_down",
            down,
            (ops[-1].name,),
            Tensor("expert_out", (max(int(rows), 1), row_size), act),
            (Tensor("experts.down", (slots, row_size, width), dtypes.experts),),
        )
    )
    return ops
