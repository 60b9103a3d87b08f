"""Sharded parameters: over which ranks, what gathers them before their use, what scatters their gradients after it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.op import Collective, Gemm, Op, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.dtypes import Dtype
    from moiety.graph.layout import Layout
    from moiety.model.feed_forward import MoeFeedForward
    from moiety.strategy.strategy import Axis


def is_fully_sharded(layout: Layout) -> bool:
    """Return whether instances share out what each of them would hold a copy of."""
    return layout.training and layout.options.fully_sharded and layout.strategy.instances > 1


def dense_shard_axis(layout: Layout) -> Axis | None:
    """Return the axis that dense parameters are sharded over; None where they are whole, or nobody else has them.

    That of the attention groups of a stage, or with those of the same stage in all instances.
    """
    if is_fully_sharded(layout):
        return "dp"
    options = layout.options
    wanted = options.dense_parameter_sharding or (layout.training and options.fully_sharded)
    return "attn_dp" if wanted and layout.strategy.attn_dp > 1 else None


def dense_shards(layout: Layout) -> int:
    """Return over how many ranks the dense parameters, their gradients and optimizer's state are divided."""
    axis, strategy = dense_shard_axis(layout), layout.strategy
    if axis is None:
        return 1
    return strategy.attn_dp * (strategy.instances if axis == "dp" else 1)


def expert_shards(layout: Layout) -> int:
    """Return over how many ranks those of each rank's experts are divided: the instances, or nobody."""
    return layout.strategy.instances if is_fully_sharded(layout) else 1


def splits_slots(moe: MoeFeedForward, layout: Layout) -> bool:
    """Return whether each part of sharded experts is some of the slots; else it is some rows or columns of all."""
    slots = (moe.num_experts + layout.options.redundant_experts) // layout.strategy.ep
    return slots % expert_shards(layout) == 0


def is_sharding(op: Op) -> bool:
    """Return whether an op gathers sharded parameters, or scatters their gradients as it sums them."""
    work = op.work
    return isinstance(work, Collective) and work.bulk and work.kind in {"all_gather", "reduce_scatter"}


def expert_elements(ops: Sequence[Op]) -> int:
    """Return the elements of the routed experts' weights of a layer on one GPU, from its forward ops."""
    experts = (op for op in ops if isinstance(op.work, Gemm) and op.work.experts)
    return sum(math.prod(weight.shape) for op in experts for weight in op.weights)


def parameter_gather(part: str, elements: int, axis: Axis, dtype: Dtype, *, prefetch: bool = True) -> Op:
    """Return the op that gathers the sharded parameters of a `part`, in the background."""
    gathered = Tensor(f"{part}_weights", (elements,), dtype)
    work = Collective("all_gather", axis, gathered.size_bytes, bulk=True)
    return Op(f"{part}_gather", work, (), gathered, prefetch=prefetch)


def gradient_scatter(name: str, elements: float, axis: Axis, after: tuple[str, ...], layout: Layout) -> Op:
    """Return the op that sums the gradients of sharded parameters, each rank its part, in the format of reductions."""
    dtypes = layout.options.dtypes
    work = Collective("reduce_scatter", axis, elements * BYTES_PER_ELEMENT[dtypes.critical], bulk=True)
    return Op(f"{name}_reduce", work, after, Tensor(name, (int(elements),), dtypes.activations))
