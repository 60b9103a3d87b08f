"""From a checkpoint to the part of the model that one rank holds, reading only what it owns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moiety.errors import InputError
from moiety.runtime.comm.priority import Priority
from moiety.runtime.conversion import COMPUTED_DTYPES
from moiety.runtime.expansion import room_bytes
from moiety.runtime.experts.build import FOR_INFERENCE, expert_layers
from moiety.runtime.model.attention import CAUSAL, PACKED
from moiety.runtime.model.decoding import Decoding
from moiety.runtime.model.graphs import GraphedDecoding, obstacle_to_graphs
from moiety.runtime.model.loading import Loading, parameter
from moiety.runtime.model.marks import NotedMarks, mark_ops
from moiety.runtime.model.parallel import (
    DividedNorm,
    ReducedBlock,
    RowLinear,
    VocabularyEmbedding,
    VocabularyHead,
)
from moiety.runtime.model.rank_model import RankModel
from moiety.runtime.model.skeleton import build_skeleton, rebuilt_buffers
from moiety.runtime.model.slices import key_heads, vocabulary_rows
from moiety.runtime.model.supply import CheckpointSupply
from moiety.runtime.overlap import Turns
from moiety.runtime.telemetry import Silent

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from moiety.runtime.checkpoint.index import Checkpoint
    from moiety.runtime.comm.group import Group
    from moiety.runtime.comm.network import Network
    from moiety.runtime.experts.build import ExpertUse
    from moiety.runtime.experts.layer import ExpertLayer
    from moiety.runtime.model.supply import WeightSupply
    from moiety.runtime.seat import Seat
    from moiety.runtime.telemetry import Recorder


def compute_dtype(seat: Seat) -> torch.dtype:
    """Return the number format that the plan's activations have; InputError for one that torch does not compute in."""
    name = seat.plan.options.dtypes.activations
    if name not in COMPUTED_DTYPES:
        rule = f"activations are computed in {', '.join(COMPUTED_DTYPES)}"
        raise InputError(rule, field="options.dtypes.activations", value=name)
    return COMPUTED_DTYPES[name]


def load_model(
    seat: Seat,
    checkpoint: Checkpoint,
    network: Network,
    *,
    turns: Turns | None = None,
    recorder: Recorder | None = None,
    use: ExpertUse = FOR_INFERENCE,
    supply: WeightSupply | None = None,
) -> RankModel:
    """Return the model of `seat`, its slices read from `checkpoint`; every rank of the plan calls it at the same time.

    `turns` are those that micro-batches take, `recorder` hears of every op that ends; to train, attention runs over
    whole rows without a cache, and gradients come back through every exchange. The weights come from `supply`, without
    one from the checkpoint. Raises InputError for a checkpoint that lacks a tensor or holds one of another shape,
    before any weight is read.
    """
    dtype = compute_dtype(seat)
    skeleton = build_skeleton(checkpoint, dtype, CAUSAL if use.trains else PACKED)
    shapes = {name: tuple(each.shape) for name, each in skeleton.tensors.items()}
    supply = supply or CheckpointSupply(network.device)
    supply.open(checkpoint, shapes)
    tp = network.group(seat.groups["tp"], "tp", Priority.REDUCTION)
    loading = Loading(
        seat,
        skeleton,
        supply,
        shapes,
        tp,
        network.device,
        NotedMarks(recorder) if recorder else Silent(),
        in_fp8=seat.plan.options.dtypes.weights == "fp8" and not use.trains,
    )
    layers = {index: skeleton.base.layers[index] for index in seat.layers}
    modules = _expert_modules(loading)
    experts = expert_layers(seat, modules, supply, network, turns or Turns(), loading.recorder, use=use)
    for index, each in experts.items():
        layers[index].set_submodule(skeleton.experts_name(index), each)
    for index, layer in layers.items():
        _fill_layer(loading, index, layer)
        if recorder is not None:
            mark_ops(layer, index, loading.recorder)
    embedding, norm, head = _ends(loading)
    rotary = rebuilt_buffers(skeleton.base.rotary_emb, skeleton.base.config).to(network.device)
    held = [each.held for each in experts.values()]
    loading.bytes_by_kind["expert_weights"] = sum(each.weights.size_bytes for each in held)
    expanded = [each.weights for each in held if each.backend.expands_codes]
    of_experts = [room_bytes(each) for weights in expanded for each in (weights.gate_up, weights.down)]
    return RankModel(
        seat=seat,
        layers=layers,
        rotary=rotary,
        embedding=embedding,
        norm=norm,
        head=head,
        expert_layers=experts,
        dtype=dtype,
        weight_bytes=loading.bytes_by_kind,
        expanded_bytes=max(loading.expanded_bytes, *of_experts, 0),
        bytes_read=supply.bytes_read,
        device=network.device,
        recorder=loading.recorder,
        prefix=skeleton.prefix(),
        shapes=shapes,
        decoding=None if use.trains else _decoding(loading, experts),
    )


def _decoding(loading: Loading, experts: Mapping[int, ExpertLayer]) -> Decoding | GraphedDecoding | None:
    """Return what steps of decoding are computed in."""
    if loading.device.type == "cpu":
        return Decoding(loading.device)
    is_graphed = loading.device.type == "cuda" and obstacle_to_graphs(loading.seat, experts) is None
    return GraphedDecoding(loading.device, loading.recorder) if is_graphed else None


def _expert_modules(loading: Loading) -> dict[int, tuple[str, Any]]:
    """Return the names of the stage's stacked expert parameters and transformers' modules, by layer."""
    skeleton, found = loading.skeleton, dict[int, tuple[str, Any]]()
    for index in loading.seat.layers:
        name = skeleton.experts_name(index)
        if name:
            module = skeleton.base.layers[index].get_submodule(name)
            found[index] = (f"{skeleton.prefix()}layers.{index}.{name}", module)
    return found


def _fill_layer(loading: Loading, index: int, layer: Any) -> None:  # noqa: ANN401 - transformers' layer
    """Read the rank's slices of a layer and put its parallel modules in place."""
    seat, plan_layer = loading.seat, loading.seat.plan.model.layers[index]
    prefix = f"{loading.skeleton.prefix()}layers.{index}."
    attention = plan_layer.attention
    assert attention is not None, "a plan that is run has attention in every layer"
    loading.fill(layer, prefix, attention)
    if seat.strategy.tp == 1:
        return
    module: Any = layer.self_attn
    if attention.kind == "gqa":
        held = key_heads(attention.num_kv_heads, seat.strategy.tp, loading.tp_index)
        module.num_key_value_groups = attention.num_heads // seat.strategy.tp // (held.stop - held.start)
        _divide_norms(loading, module, prefix)
    ops = ("o_proj", "attn_all_reduce")
    module.o_proj = _summed(loading, module.o_proj, index, loading.tp, ops)
    block = layer.mlp
    if plan_layer.moe is None:
        block.down_proj = _summed(loading, block.down_proj, index, loading.tp, ("dense_down", "ffn_all_reduce"))
        return
    for shared in ("shared_expert", "shared_experts"):
        part = getattr(block, shared, None)
        if part is not None:
            part.down_proj = _summed(loading, part.down_proj, index, None, ("shared_down", ""))
    layer.mlp = ReducedBlock(block, loading.tp, recorder=loading.recorder, layer=index)


def _summed(loading: Loading, linear: Any, layer: int, group: Group | None, ops: tuple[str, str]) -> RowLinear:  # noqa: ANN401
    """Return a product like `linear` whose parts are summed over `group`, or later where there is none."""
    bias = linear.bias if group is not None or loading.tp_index == 0 else None
    return RowLinear(linear.weight, bias, group, recorder=loading.recorder, ops=ops, layer=layer)


def _divide_norms(loading: Loading, attention: Any, prefix: str) -> None:  # noqa: ANN401 - transformers' attention
    """Replace norms over all heads by ones that know of the other ranks' heads."""
    for name in ("q_norm", "k_norm"):
        norm = getattr(attention, name, None)
        if norm is None:
            continue
        whole = loading.shapes[f"{prefix}self_attn.{name}.weight"][0]
        if norm.weight.shape[0] != whole:
            eps = getattr(norm, "variance_epsilon", None)
            assert isinstance(eps, float), "an RMS norm"
            setattr(attention, name, DividedNorm(norm.weight, eps, whole, loading.tp))


def _ends(
    loading: Loading,
) -> tuple[VocabularyEmbedding | None, torch.nn.Module | None, VocabularyHead | None]:
    """Return embedding, final norm and head, each where the stage has it."""
    seat, skeleton = loading.seat, loading.skeleton
    vocabulary, tp, index = skeleton.base.embed_tokens.weight.shape[0], seat.strategy.tp, loading.tp_index
    embedding_name = f"{skeleton.prefix()}embed_tokens.weight"
    held = 0
    embedding = norm = head = None
    if seat.is_first_stage:
        weight = parameter(loading.read(embedding_name, None))
        held += weight.nbytes
        embedding = VocabularyEmbedding(
            weight, vocabulary_rows(vocabulary, tp, index).start, loading.tp, loading.recorder
        )
    if seat.is_last_stage:
        norm = skeleton.base.norm
        loading.fill(norm, f"{skeleton.prefix()}norm.", None)
        if seat.plan.model.tie_word_embeddings:
            weight = embedding.weight if embedding is not None else parameter(loading.read(embedding_name, None))
            held += 0 if embedding is not None else weight.nbytes
        else:
            weight = parameter(loading.read("lm_head.weight", None))
            held += weight.nbytes
        head = VocabularyHead(weight, vocabulary, loading.tp, loading.recorder)
    loading.bytes_by_kind["embedding_and_head"] = held
    return embedding, norm, head
