"""Ops that only training has: backward passes, the reduction of gradients, and the optimizer's update."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.op import AttentionCore, Collective, Gemm, MemoryPass, Op, Tensor
from moiety.model.feed_forward import MoeFeedForward

if TYPE_CHECKING:
    from moiety.graph.layout import Layout
    from moiety.graph.op import CollectiveKind
    from moiety.model.model import Block, Model

_MIRRORED: dict[CollectiveKind, CollectiveKind] = {
    "dispatch": "combine",
    "combine": "dispatch",
    "all_gather": "reduce_scatter",
    "reduce_scatter": "all_gather",
}
_ADAM_BYTES_MOVED = 6 * 4 + 2 + 2
"""FP32 master weight and two moments read and written, the gradient read, the weight written."""


def routed_parameters(block: Block, hidden_size: int) -> int:
    """Return the parameters of a layer's routed experts, 0 for a dense layer."""
    part = block.feed_forward
    return part.num_experts * part.expert_parameters(hidden_size) if isinstance(part, MoeFeedForward) else 0


def dense_parameters(block: Block, hidden_size: int) -> int:
    """Return the parameters of a layer that every attention group needs: all but the routed experts."""
    return block.num_parameters(hidden_size) - routed_parameters(block, hidden_size)


def optimizer_shards(layout: Layout) -> int:
    """Return over how many ranks the optimizer's state of the dense parameters is divided."""
    strategy = layout.strategy
    return strategy.attn_dp * strategy.instances if layout.options.dense_parameter_sharding else 1


def backward_ops(forward: tuple[Op, ...], block: Block, hidden_size: int, layout: Layout) -> tuple[Op, ...]:
    """Return the backward pass of a layer: each op after the ops that used its output, gradients reduced at the end.

    Gathered parameters are gathered again before it begins.
    """
    gathered = tuple(_backward_op(op, ()) for op in forward if op.prefetch)
    begin = ("input", *(op.name for op in gathered))
    users: dict[str, list[str]] = {}
    for op in forward:
        for name in op.inputs:
            users.setdefault(name, []).append(f"{op.name}.backward")
    ops = [_backward_op(op, tuple(users.get(op.name, ())) or begin) for op in reversed(forward) if not op.prefetch]
    reductions = _gradient_reductions(block, hidden_size, layout, ops[-1].name)
    return (*gathered, *ops, *reductions)


def _backward_op(op: Op, inputs: tuple[str, ...]) -> Op:
    work = op.work
    if isinstance(work, Gemm):
        work = replace(work, times=2 * work.times)
    elif isinstance(work, AttentionCore):
        # five products instead of two (FlashAttention-2, Dao 2023)
        work = replace(work, flops=2.5 * work.flops, bytes=2 * work.bytes)
    elif isinstance(work, MemoryPass):
        work = replace(work, bytes=2 * work.bytes)
    elif not work.bulk:
        work = replace(work, kind=_MIRRORED.get(work.kind, work.kind))
    return Op(f"{op.name}.backward", work, inputs, op.output, (), prefetch=op.prefetch)


def _gradient_reductions(block: Block, hidden_size: int, layout: Layout, last: str) -> list[Op]:
    """Return the transfers that add a layer's gradients up, in the background.

    Sharded gradients are scattered over the attention groups in every micro-batch (ZeRO-2 and 3). All others add up
    over the micro-batches first and are reduced once a step, of which this is one micro-batch's share.
    """
    strategy, options = layout.strategy, layout.options
    element = BYTES_PER_ELEMENT[options.dtypes.activations]
    share = element / layout.schedule.num_microbatches
    dense = dense_parameters(block, hidden_size) / strategy.tp
    ops: list[Op] = []
    if strategy.attn_dp > 1:
        if options.dense_parameter_sharding:
            work = Collective("reduce_scatter", "attn_dp", dense * element, bulk=True)
        else:
            work = Collective("all_reduce", "attn_dp", dense * share, bulk=True)
        ops.append(Op("dense_gradient_reduce", work, (last,), _gradient("dense_gradient", dense, layout)))
        last = "dense_gradient_reduce"
    if strategy.instances > 1:
        held = dense / (strategy.attn_dp if options.dense_parameter_sharding else 1)
        work = Collective("all_reduce", "instance", held * share, bulk=True)
        ops.append(Op("dense_gradient_all_reduce", work, (last,), _gradient("dense_gradient", held, layout)))
    routed = routed_parameters(block, hidden_size) / (strategy.ep * strategy.etp)
    if strategy.instances > 1 and routed:
        work = Collective("all_reduce", "instance", routed * share, bulk=True)
        output = _gradient("expert_gradient", routed, layout)
        ops.append(Op("expert_gradient_all_reduce", work, ("expert_gate_up.backward",), output))
    return ops


def _gradient(name: str, elements: float, layout: Layout) -> Tensor:
    return Tensor(name, (int(elements),), layout.options.dtypes.activations)


def update_ops(model: Model, layout: Layout) -> tuple[Op, ...]:
    """Return the optimizer's pass: AdamW reads and writes FP32 master weights and two moments, reads gradients."""
    strategy = layout.strategy
    experts = sum(routed_parameters(block, model.hidden_size) for block in model.layers)
    dense = (model.num_parameters - experts) / (strategy.tp * strategy.pp * optimizer_shards(layout))
    local = dense + experts / strategy.gpus_per_instance
    return (Op("optimizer", MemoryPass(local * _ADAM_BYTES_MOVED), ()),)
