"""A checkpoint's weights under the names and in the shapes of the model: checked as a whole, read slice by slice."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from moiety.errors import InputError
from moiety.runtime.block_scaled import joined
from moiety.runtime.checkpoint.assembly import Fault, assembled, files_of
from moiety.runtime.checkpoint.expert_layout import ExpertLayout
from moiety.runtime.checkpoint.names import is_leftover, parts_of, renumbered, ties_by_default
from moiety.runtime.checkpoint.quantized import FP8, stored_views
from moiety.runtime.checkpoint.slice_reader import DTYPES, SliceReader, whole
from moiety.runtime.mxfp4 import FP4_PAIRS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moiety.runtime.block_scaled import BlockScaled, CodeFormat
    from moiety.runtime.checkpoint.expert_layout import ExpertKind
    from moiety.runtime.checkpoint.index import Checkpoint
    from moiety.runtime.checkpoint.names import Part
    from moiety.runtime.checkpoint.slice_reader import Box
    from moiety.runtime.checkpoint.view import View

_FP8 = frozenset(DTYPES[each] for each in FP8)
_TIED = ("lm_head.weight", "model.embed_tokens.weight")
"""Output head and embedding, of which a checkpoint holds one where the model ties them."""


class WeightSource:
    """The parameters of a model, as a checkpoint holds them.

    `parameters` gives each parameter's and persistent buffer's full shape, under the name that `transformers` gives
    it. Raises InputError for a quantised format that is not read, and where two tensors hold one parameter.
    """

    def __init__(self, checkpoint: Checkpoint, parameters: Mapping[str, tuple[int, ...]]) -> None:
        self.checkpoint = checkpoint
        self.parameters = dict(parameters)
        self._reader = SliceReader()
        self._model_type = str(checkpoint.text_config.get("model_type", checkpoint.config.get("model_type", "")))
        views = stored_views(checkpoint)
        parts: defaultdict[str, list[Part]] = defaultdict(list)
        for part in parts_of(views, self._model_type, self.parameters):
            parts[part.target].append(part)
        self._assemblies = {
            name: assembled(parts[name], views, tuple(shape))
            for name, shape in self.parameters.items()
            if name in parts
        }
        self._is_fp8 = any(each.codes in _FP8 for each in views.values())
        self._first_parts = {name: of_one[0] for name, of_one in parts.items()}
        self._tie()

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read from the files so far."""
        return self._reader.bytes_read

    def check(self) -> None:
        """Compare every parameter with the headers of the files; nothing is read.

        Raises one InputError that names the first tensor that is missing or of another shape or number format, its
        file, what was found and what the model has, and says how many more there are.
        """
        faults = [fault for name in self.parameters for fault in self._faults(name)]
        if faults:
            raise self._refusal(faults)

    def unused(self) -> tuple[str, ...]:
        """Return the tensors of the files that no parameter uses and that are not known to be of no use, sorted."""
        used = files_of(self._assemblies)
        layers = self.checkpoint.text_config.get("num_hidden_layers")
        num_layers = layers if isinstance(layers, int) else None
        return tuple(
            sorted(name for name in self.checkpoint.tensors.keys() - used if not is_leftover(name, num_layers))
        )

    def read(self, name: str, *slices: slice, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return a slice of a parameter, whole along the axes that `slices` leaves out.

        Of the files, only the bytes of the slice are read. The number format is the checkpoint's, or that of
        config.json where the weights are quantised, unless `dtype` is given. Raises InputError for a parameter that
        the files do not hold in its shape.
        """
        view = self._view(name)
        return view.read(_box(view, slices), self._reader, dtype or view.dtype)

    def gives(self, name: str, codes: CodeFormat) -> bool:
        """Return whether a rank whose plan has a parameter in that format holds it so.

        In FP8 it does, but for what an FP8 checkpoint itself keeps in another format; in MXFP4 it holds what the
        checkpoint has so. Raises InputError as `read` does.
        """
        if codes == "mxfp4":
            return self._view(name).codes == FP4_PAIRS
        return not self._is_fp8 or self._view(name).codes in _FP8

    def read_codes(self, name: str, *slices: slice, dtype: torch.dtype, codes: CodeFormat) -> BlockScaled:
        """Return a slice of a matrix as codes and scales for products in `dtype`; see `View.read_codes`."""
        view = self._view(name)
        return view.read_codes(_box(view, slices), self._reader, dtype, codes)

    def read_expert(
        self,
        prefix: str,
        kind: ExpertKind,
        expert: int,
        columns: slice | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Return one expert of the stacked parameter `{prefix}.{kind}`, in the layout of `transformers`.

        `columns` is a slice of the intermediate size: of gate and of up alike, which keep their order or alternation,
        of what goes into down, and of gate's and up's bias. Down's bias is always whole: one rank adds it.
        """
        view = self._view(f"{prefix}.{kind}")
        axis, boxes = self._expert_boxes(prefix, kind, expert, columns)
        pieces = [view.read(box, self._reader, dtype or view.dtype) for box in boxes]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=axis)).squeeze(0)

    def read_expert_codes(
        self, prefix: str, kind: ExpertKind, expert: int, columns: slice | None, dtype: torch.dtype, codes: CodeFormat
    ) -> BlockScaled:
        """Return the same of a projection as codes and scales, for products in `dtype`; see `View.read_codes`."""
        view = self._view(f"{prefix}.{kind}")
        axis, boxes = self._expert_boxes(prefix, kind, expert, columns)
        pieces = [view.read_codes(box, self._reader, dtype, codes) for box in boxes]
        return (pieces[0] if len(pieces) == 1 else joined(pieces, axis - len(view.shape)))[0]

    def _expert_boxes(self, prefix: str, kind: ExpertKind, expert: int, columns: slice | None) -> tuple[int, list[Box]]:
        """Return the slices of a stacked parameter that a part of an expert consists of, and along which axis."""
        layout = ExpertLayout.of(prefix, self.parameters, self._model_type)
        box = (range(expert, expert + 1), *whole(self.parameters[f"{prefix}.{kind}"][1:]))
        axis = layout.axis(kind)
        if columns is None or axis is None:
            return 0, [box]
        ranges = layout.ranges(kind, _indices(columns, layout.intermediate_size))
        return axis + 1, [_with(box, axis + 1, each) for each in ranges]

    def _view(self, name: str) -> View:
        faults = self._faults(name)
        if faults:
            raise self._refusal(faults)
        view = self._assemblies[name].view
        assert view is not None, name
        return view

    def _faults(self, name: str) -> Sequence[Fault]:
        assembly = self._assemblies.get(name)
        return (Fault(name, "the tensor is missing"),) if assembly is None else assembly.faults

    def _stored_name(self, name: str) -> str:
        """Return the name in the files of a missing parameter, after that of another layer's."""
        stored = (renumbered(target, name, part.name) for target, part in self._first_parts.items())
        return next((each for each in stored if each is not None), name)

    def _refusal(self, faults: Sequence[Fault]) -> InputError:
        first = faults[0]
        more = f", and {len(faults) - 1} more tensors do not fit" if len(faults) > 1 else ""
        return InputError(
            f"{first.rule}{more}",
            source=first.file or str(self.checkpoint.listing),
            field=self._stored_name(first.name) if first.file is None else first.name,
            value=first.value,
            remedy="the weights must be those of the model in config.json: is it a checkpoint of another model?",
        )

    def _tie(self) -> None:
        """Take the embedding for the output head, or the other way round, where the model ties them."""
        for name, other in (_TIED, _TIED[::-1]):
            if name in self.parameters and name not in self._assemblies and other in self._assemblies and self._ties():
                self._assemblies[name] = self._assemblies[other]

    def _ties(self) -> bool:
        config = self.checkpoint.text_config
        stated = config.get("tie_word_embeddings", self.checkpoint.config.get("tie_word_embeddings"))
        if stated is not None:
            return bool(stated)
        return ties_by_default(self._model_type)


def _box(view: View, slices: tuple[slice, ...]) -> Box:
    """Return the indices of a view that slices name, all along the axes that these leave out."""
    axes = [*slices, *[slice(None)] * (len(view.shape) - len(slices))]
    return tuple(_indices(axis, size) for axis, size in zip(axes, view.shape, strict=True))


def _indices(axis: slice, size: int) -> range:
    indices = range(size)[axis]
    assert indices.step == 1, axis
    return indices or range(0)


def _with(box: Box, axis: int, indices: range) -> Box:
    return (*box[:axis], indices, *box[axis + 1 :])
