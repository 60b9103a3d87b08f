"""Pieces: the boxes of the model's parameters that a rank holds, by transformers' names and global offsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch.distributed.tensor import DTensor

from moiety.runtime.checkpoint.expert_layout import KINDS, ExpertLayout
from moiety.runtime.experts.layer import ExpertLayer
from moiety.runtime.model.slices import parameter_slices, share
from moiety.runtime.training.experts import TrainedExperts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from moiety.runtime.checkpoint.expert_layout import ExpertKind
    from moiety.runtime.model.rank_model import RankModel

Key = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A box of a parameter or persistent buffer, as one rank holds it."""

    name: str
    """transformers' name of the whole."""
    offsets: tuple[int, ...]
    """Where in the whole the box begins."""
    owner: torch.Tensor
    """The rank's parameter that the box is a part of; of a stack, a slot each."""
    box: tuple[slice, ...]
    """Where in the owner it lies; of nothing: all of it."""

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the box of a tensor that is laid out as the owner: itself, its gradient, the optimizer's state."""
        return local(tensor).detach()[self.box]

    @property
    def key(self) -> Key:
        """What two ranks that hold the same box call it: name, offsets and sizes."""
        return self.name, self.offsets, tuple(self.of(self.owner).shape)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the rank's part of a tensor that is sharded; any other is the rank's part itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def pieces_of(model: RankModel) -> tuple[Piece, ...]:
    """Return every piece that a rank holds, in an order that does not depend on the rank: parameters and buffers."""
    found: list[Piece] = []
    for index, layer in model.layers.items():
        prefix = f"{model.prefix}layers.{index}."
        attention = model.seat.plan.model.layers[index].attention
        for local, tensor in _tensors(layer):
            name = prefix + local
            if name in model.shapes:
                found.append(_dense(model, name, tensor, attention))
        for path, module in layer.named_modules():
            if isinstance(module, ExpertLayer):
                found += _expert_pieces(model, index, prefix + _plain(path), module)
    ends = (("embed_tokens.weight", model.embedding), ("norm.weight", model.norm))
    found += [_dense(model, model.prefix + name, part.weight, None) for name, part in ends if part is not None]
    if model.head is not None and not model.seat.plan.model.tie_word_embeddings:
        found.append(_dense(model, "lm_head.weight", cast("Any", model.head).weight, None))
    return tuple(sorted(found, key=lambda each: each.key))


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what is no expert's: sharded experts are parameters of the module too."""
    experts = {id(each) for part in module.modules() if isinstance(part, ExpertLayer) for each in part.parameters()}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if id(tensor) not in experts:
            yield _plain(name), tensor


def _plain(path: str) -> str:
    """Return transformers' name of what stands inside our block of a sum."""
    return path.replace("mlp.inner.", "mlp.")


def _dense(model: RankModel, name: str, tensor: Any, attention: Any) -> Piece:  # noqa: ANN401 - a module's attribute
    whole = model.shapes[name]
    tp, index = model.seat.strategy.tp, model.seat.coordinates["tp"]
    slices = parameter_slices(name, whole, attention, tp=tp, index=index)
    offsets = [each.start or 0 for each in slices] + [0] * (len(whole) - len(slices))
    if isinstance(tensor, DTensor):
        offsets[0] += _local_range(tensor).start
    return Piece(name, tuple(offsets), tensor, ())


def _local_range(tensor: DTensor) -> range:
    """Return the rank's part of the axis that a parameter is sharded over."""
    axis, mesh = _shard_axis(tensor), tensor.device_mesh
    size = tensor.shape[axis]
    width = -(-size // mesh.size())
    first = min(mesh.get_local_rank() * width, size)
    return range(first, min(first + width, size))


def _shard_axis(tensor: DTensor) -> int:
    placement: Any = tensor.placements[0]
    return placement.dim


def _expert_pieces(model: RankModel, index: int, prefix: str, layer: ExpertLayer) -> Iterator[Piece]:
    """Yield the boxes of every slot's expert; gate and up of a part of an expert are two."""
    placement = model.seat.pool.placement
    assert placement is not None, "a model with expert layers has a placement"
    layout = ExpertLayout.of(prefix, model.shapes, model.seat.plan.model.architecture)
    experts = placement.experts_of_rank(placement.layers.index(index), model.seat.coordinates["ep"])
    etp, place = model.seat.strategy.etp, model.seat.coordinates["etp"]
    columns = range(layout.intermediate_size)[share(layout.intermediate_size, etp, place)]
    stored: Mapping[ExpertKind, torch.Tensor] = TrainedExperts.of(layer).stored
    for kind in KINDS:
        if kind not in stored:
            continue
        axis = layout.axis(kind)
        whole = model.shapes[f"{prefix}.{kind}"][1:]
        ranges = (range(whole[0]),) if axis is None else layout.ranges(kind, columns)
        for slot, expert in enumerate(experts):
            low = 0
            for each in ranges:
                along = axis or 0
                box = (*(slice(None),) * along, slice(low, low + len(each)))
                offsets = (0,) * along + (each.start,) + (0,) * (len(whole) - along - 1)
                low += len(each)
                piece = Piece(f"{prefix}.{kind}", (expert, *offsets), stored[kind], (slice(slot, slot + 1), *box))
                held = _held_part(piece)
                if held is not None:
                    yield held


def _held_part(piece: Piece) -> Piece | None:
    """Return what the rank holds of a piece of an owner that may be sharded; None where that is nothing."""
    owner = piece.owner
    if not isinstance(owner, DTensor):
        return piece
    axis, part = _shard_axis(owner), _local_range(owner)
    box = [*piece.box, *(slice(None),) * (owner.dim() - len(piece.box))]
    first, last, _ = box[axis].indices(owner.shape[axis])
    low, high = max(first, part.start), min(last, part.stop)
    if low >= high:
        return None
    box[axis] = slice(low - part.start, high - part.start)
    offsets = list(piece.offsets)
    if axis:  # along the slots an expert is whole
        offsets[axis] += low - first
    return Piece(piece.name, tuple(offsets), owner, tuple(box))
