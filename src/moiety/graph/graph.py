"""Graph: what one step must do on one GPU of each stage; layers of the same kind are folded with their count."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moiety.dtypes import BYTES_PER_ELEMENT
from moiety.graph.attention import attention_ops
from moiety.graph.feed_forward import feed_forward_ops, norm_behind, residual_add
from moiety.graph.layout import Layout
from moiety.graph.op import Collective, Gemm, MemoryPass, Op, Tensor
from moiety.graph.sharding import dense_shard_axis, expert_elements, is_fully_sharded, parameter_gather
from moiety.graph.training import backward_ops, held_dense_parameters, update_ops, vocabulary_gather
from moiety.strategy.stages import held_layers, stage_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.model.model import Block, Model
    from moiety.plan import Options, Pool, Schedule
    from moiety.strategy.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Graph:
    """The ops of one micro-batch, by the place where they run.

    `layers[b]` holds the ops of a layer of the model's block kind b, in an order that respects their inputs;
    `stages[s]` lists the layers (indices into the model) of stage s, `pieces[k]` those of the k-th piece of the model
    in the order in which a micro-batch goes through them: stage k modulo the number of stages holds it.
    """

    model: Model
    layout: Layout
    embedding: tuple[Op, ...]
    layers: tuple[tuple[Op, ...], ...]
    backward: tuple[tuple[Op, ...], ...]
    """Backward ops of each block kind, last first; empty outside training."""
    head: tuple[Op, ...]
    boundary: tuple[Op, ...]
    """What a stage sends to the next one."""
    update: tuple[Op, ...]
    """Once a step, after the last backward pass: the optimizer."""
    stages: tuple[Sequence[int], ...]
    pieces: tuple[Sequence[int], ...]

    @property
    def ops(self) -> tuple[Op, ...]:
        """The ops of every part, those of a block kind once."""
        parts = (self.embedding, *self.layers, *self.backward, self.head, self.boundary, self.update)
        return tuple(op for part in parts for op in part)

    def block_of(self, layer: int) -> int:
        """Return the block kind of a layer."""
        return self.model.layer_blocks[layer]


def build_graph(model: Model, pool: Pool, options: Options) -> Graph:
    """Return what one micro-batch of `pool` must do."""
    return build_step_graph(model, pool.strategy, pool.schedule, options, training=pool.role == "training")


def build_step_graph(
    model: Model, strategy: Strategy, schedule: Schedule, options: Options, *, training: bool
) -> Graph:
    """Return what one micro-batch must do under a strategy and a schedule."""
    layout = Layout(strategy, options, schedule, training)
    layers = tuple(_layer(model, block, layout) for block in model.blocks)
    backward: tuple[tuple[Op, ...], ...] = ()
    if training:
        blocks = zip(layers, model.blocks, strict=True)
        backward = tuple(backward_ops(ops, block, model.hidden_size, layout) for ops, block in blocks)
    act = options.dtypes.activations
    boundary = Tensor("hidden", (layout.tokens, model.hidden_size), act)
    send = Op("stage_send", Collective("send", "pp", boundary.size_bytes), (), boundary)
    return Graph(
        model=model,
        layout=layout,
        embedding=_embedding(model, layout),
        layers=layers,
        backward=backward,
        head=_head(model, layout),
        boundary=(send,) if strategy.pp > 1 else (),
        update=update_ops(model, layout) if training else (),
        stages=held_layers(model.num_layers, strategy.pp, options.virtual_stages),
        pieces=stage_layers(model.num_layers, strategy.pp * options.virtual_stages),
    )


def _layer(model: Model, block: Block, layout: Layout) -> tuple[Op, ...]:
    ops = [] if block.attention is None else attention_ops(block.attention, model.hidden_size, layout)
    if "attention" in block.norms_behind:
        ops.append(norm_behind("attn_out_norm", (ops[-1].name,), model.hidden_size, layout))
    if block.feed_forward is None:
        ops.append(residual_add((ops[-1].name,), model.hidden_size, layout))
    else:
        after = ops[-1].name if ops else None
        behind = "feed_forward" in block.norms_behind
        ops += feed_forward_ops(block.feed_forward, model.hidden_size, layout, after, has_norm_behind=behind)
    return _with_gathers(ops, block, model.hidden_size, layout)


def _with_gathers(ops: list[Op], block: Block, hidden_size: int, layout: Layout) -> tuple[Op, ...]:
    """Return a layer's ops behind those that gather its sharded parameters, each before its first use."""
    gathers: list[Op] = []
    dtypes, axis = layout.options.dtypes, dense_shard_axis(layout)
    if axis is not None:
        count = held_dense_parameters(ops, block, hidden_size)
        gathers.append(parameter_gather("dense", count, axis, dtypes.weights))
        ops[0] = replace(ops[0], inputs=("input", gathers[-1].name))
    if is_fully_sharded(layout) and block.moe is not None:
        gathers.append(parameter_gather("expert", expert_elements(ops), "instance", dtypes.experts))
        first = next(index for index, op in enumerate(ops) if isinstance(op.work, Gemm) and op.work.experts)
        ops[first] = replace(ops[first], inputs=(*ops[first].inputs, gathers[-1].name))
    return (*gathers, *ops)


def _embedding(model: Model, layout: Layout) -> tuple[Op, ...]:
    act = layout.options.dtypes.activations
    output = Tensor("hidden", (layout.tokens, model.hidden_size), act)
    ops = list(vocabulary_gather(model, layout, first=True, last=layout.strategy.pp == 1))
    ops.append(Op("embedding", MemoryPass(2.0 * output.size_bytes), tuple(op.name for op in ops), output))
    if layout.strategy.tp > 1:
        work = Collective("all_reduce", "tp", output.size_bytes)
        ops.append(Op("embedding_all_reduce", work, ("embedding",), output))
    return tuple(ops)


def _head(model: Model, layout: Layout) -> tuple[Op, ...]:
    """Return the final norm and the head: over each sequence's last token and guesses, over all when training."""
    schedule, dtypes = layout.schedule, layout.options.dtypes
    rows = schedule.decode_tokens
    if schedule.prefill_tokens:
        rows += layout.tokens if layout.training else max(schedule.prefill_tokens // max(schedule.prompt_tokens, 1), 1)
    columns = layout.share(model.vocab_size)
    passes = 3 if layout.training else 1
    head = Gemm(rows, columns, model.hidden_size, dtypes.activations, dtypes.activations, times=passes)
    logits = Tensor("logits", (rows, columns), dtypes.activations)
    norm = MemoryPass(2.0 * rows * model.hidden_size * BYTES_PER_ELEMENT[dtypes.activations])
    gathered = vocabulary_gather(model, layout, first=False, last=True) if layout.strategy.pp > 1 else ()
    before = tuple(op.name for op in gathered)
    ops = [
        *gathered,
        Op("final_norm", norm, before, Tensor("final", (rows, model.hidden_size), dtypes.activations)),
        Op(
            "lm_head",
            head,
            ("final_norm",),
            logits,
            (Tensor("lm_head.weight", (columns, model.hidden_size), dtypes.activations),),
        ),
    ]
    if layout.strategy.tp > 1 and not layout.training:
        whole = Tensor("all_logits", (rows, model.vocab_size), dtypes.activations)
        ops.append(Op("logits_all_gather", Collective("all_gather", "tp", whole.size_bytes), ("lm_head",), whole))
    return tuple(ops)
