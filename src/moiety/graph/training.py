"""Ops that only training has: backward passes, the reduction of gradients, and the optimizer's update."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.op import AttentionCore, Collective, Gemm, MemoryPass, Op, Tensor
from moiety.graph.sharding import (
    dense_shard_axis,
    dense_shards,
    expert_elements,
    expert_shards,
    gradient_scatter,
    is_fully_sharded,
    parameter_gather,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    moe = block.moe
    return 0 if moe is None else moe.num_experts * moe.expert_parameters(hidden_size)


def held_dense_parameters(ops: Sequence[Op], block: Block, hidden_size: int) -> int:
    """Return the dense parameters of a layer on one GPU, from its forward ops: tensor parallelism divides not all."""
    held = {
        weight.name: math.prod(weight.shape)
        for op in ops
        if not (isinstance(op.work, Gemm) and op.work.experts)
        for weight in op.weights
    }
    return sum(held.values()) + block.num_norms * hidden_size


def vocabulary_parameters(model: Model, layout: Layout, *, first: bool, last: bool) -> int:
    """Return the parameters of embedding and output head on each GPU of a stage: the first and the last have them."""
    table = layout.share(model.vocab_size) * model.hidden_size
    return table * (2 if first and last and not model.tie_word_embeddings else int(first or last))


def vocabulary_gather(model: Model, layout: Layout, *, first: bool, last: bool) -> tuple[Op, ...]:
    """Return what gathers a stage's embedding and head before their use in training; nothing where they are whole."""
    axis, count = dense_shard_axis(layout), vocabulary_parameters(model, layout, first=first, last=last)
    if not layout.training or axis is None or not count:
        return ()
    return (parameter_gather("vocabulary", count, axis, layout.options.dtypes.activations, prefetch=False),)


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
    reductions = _gradient_reductions(forward, block, hidden_size, layout, ops[-1].name)
    return (*gathered, *ops, *reductions)


def _backward_op(op: Op, inputs: tuple[str, ...]) -> Op:
    work = op.work
    if isinstance(work, Gemm):
        work = replace(work, times=2 * work.times)
    elif isinstance(work, AttentionCore):
        # five products instead of two (FlashAttention-2, Dao 2023)
        work = replace(work, flops=2.5 * work.flops, bytes=2 * work.bytes, shape=None)
    elif isinstance(work, MemoryPass):
        work = replace(work, bytes=2 * work.bytes)
    elif not work.bulk:
        # keys and values come once more, and their gradients go back
        payload = work.payload_bytes * (2 if work.axis == "cp" else 1)
        work = replace(work, kind=_MIRRORED.get(work.kind, work.kind), payload_bytes=payload)
    return Op(f"{op.name}.backward", work, inputs, op.output, (), prefetch=op.prefetch)


def _gradient_reductions(
    forward: tuple[Op, ...], block: Block, hidden_size: int, layout: Layout, last: str
) -> list[Op]:
    """Return the transfers that add a layer's gradients up, in the background.

    Sharded gradients are scattered in every micro-batch (ZeRO-2 and 3), in the format of reductions. All others add up
    over the micro-batches first and are reduced once a step, of which this is one micro-batch's share.
    """
    share = 1 / layout.schedule.num_microbatches
    dense = held_dense_parameters(forward, block, hidden_size)
    return [
        *_copies_reductions("dense_gradient", dense, layout, (last,), share),
        *_expert_reductions(forward, block, hidden_size, layout, share),
    ]


def _expert_reductions(
    forward: tuple[Op, ...], block: Block, hidden_size: int, layout: Layout, share: float
) -> list[Op]:
    """Return the transfers that sum the gradients of a layer's experts over the instances."""
    strategy = layout.strategy
    routed = routed_parameters(block, hidden_size) / (strategy.ep * strategy.etp)
    if strategy.instances == 1 or not routed:
        return []
    first = next(op.name for op in forward if isinstance(op.work, Gemm) and op.work.experts)
    after = (f"{first}.backward",)
    if is_fully_sharded(layout):
        return [gradient_scatter("expert_gradient", expert_elements(forward), "instance", after, layout)]
    element = BYTES_PER_ELEMENT[layout.options.dtypes.activations]
    work = Collective("all_reduce", "instance", routed * element * share, bulk=True)
    return [Op("expert_gradient_all_reduce", work, after, _gradient("expert_gradient", routed, layout))]


def _copies_reductions(name: str, elements: float, layout: Layout, after: tuple[str, ...], share: float) -> list[Op]:
    """Return the transfers that sum dense gradients over attention groups and instances.

    `share` is that of what is reduced once a step; what is scattered is all of it every time.
    """
    strategy, axis = layout.strategy, dense_shard_axis(layout)
    element = BYTES_PER_ELEMENT[layout.options.dtypes.activations]
    ops: list[Op] = []
    if axis is not None:
        ops.append(gradient_scatter(name, elements, axis, after, layout))
    elif strategy.attn_dp > 1:
        work = Collective("all_reduce", "attn_dp", elements * element * share, bulk=True)
        ops.append(Op(f"{name}_reduce", work, after, _gradient(name, elements, layout)))
    if strategy.instances > 1 and axis != "dp":
        held = elements / dense_shards(layout)
        after = tuple(op.name for op in ops) or after
        work = Collective("all_reduce", "instance", held * element * share, bulk=True)
        ops.append(Op(f"{name}_all_reduce", work, after, _gradient(name, held, layout)))
    return ops


def _gradient(name: str, elements: float, layout: Layout) -> Tensor:
    return Tensor(name, (int(elements),), layout.options.dtypes.activations)


def update_ops(model: Model, layout: Layout) -> tuple[Op, ...]:
    """Return what ends a step: gradients of embedding and head are summed, and the optimizer passes over everything.

    AdamW reads and writes FP32 master weights and two moments, and reads gradients.
    """
    strategy = layout.strategy
    vocabulary = vocabulary_parameters(model, layout, first=True, last=strategy.pp == 1)
    reductions = _copies_reductions("vocabulary_gradient", vocabulary, layout, (), 1)
    kinds = Counter(model.layer_blocks).items()
    experts = sum(count * routed_parameters(model.blocks[kind], model.hidden_size) for kind, count in kinds)
    dense = (model.num_parameters - experts) / (strategy.tp * strategy.pp * dense_shards(layout))
    local = dense + experts / (strategy.gpus_per_instance * expert_shards(layout))
    after = tuple(op.name for op in reductions[-1:])
    return (*reductions, Op("optimizer", MemoryPass(local * _ADAM_BYTES_MOVED), after))
