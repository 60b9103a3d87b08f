"""A checkpoint's folder: config.json, the safetensors files, and which of them holds which tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from moiety.errors import InputError
from moiety.files import read_text
from moiety.json_object import read_json_object
from moiety.runtime.checkpoint.header import read_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from moiety.runtime.checkpoint.header import TensorEntry

CONFIG = "config.json"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FETCH = "fetch the checkpoint again, with every file that the index names"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as it lies on disk. Made by `open`, which reads no weights."""

    folder: Path
    config: dict[str, object]
    listing: Path
    """The file that says which tensors there are: the index, or the one file of weights."""
    tensors: Mapping[str, TensorEntry]
    """By name in the files, sorted."""

    @classmethod
    def open(cls, folder: Path | str) -> Checkpoint:
        """Return the checkpoint in `folder`: its config.json, its index and the header of every safetensors file.

        Raises InputError, naming the file and the tensor, for whatever of them is missing, damaged or contradictory.
        """
        folder = Path(folder)
        if not folder.is_dir():
            rule = "is a file, not a folder" if folder.exists() else "there is no such folder"
            raise InputError(rule, source=str(folder), remedy="name the folder with config.json and model.safetensors")
        config = _config(folder)
        listing = next((folder / name for name in (WHOLE, INDEX) if (folder / name).exists()), None)
        if listing is None:
            raise _no_weights(folder)
        entries = read_header(listing) if listing.name == WHOLE else _sharded(listing)
        tensors = {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}
        return cls(folder, config, listing, MappingProxyType(tensors))

    @property
    def text_config(self) -> dict[str, object]:
        """The part of config.json about the language model: all of it, or `text_config`."""
        part = self.config.get("text_config")
        return cast("dict[str, object]", part) if isinstance(part, dict) else self.config

    @property
    def quantization(self) -> dict[str, object]:
        """The section `quantization_config`; empty where there is none."""
        part = self.text_config.get("quantization_config", self.config.get("quantization_config"))
        return cast("dict[str, object]", part) if isinstance(part, dict) else {}


def _config(folder: Path) -> dict[str, object]:
    file = folder / CONFIG
    if not file.exists():
        remedy = "name the folder that `save_pretrained` wrote, or that was downloaded from the hub"
        raise InputError(f"the folder holds no {CONFIG}", source=str(folder), remedy=remedy)
    return read_json_object(read_text(file), source=str(file), remedy="fetch the file again")


def _no_weights(folder: Path) -> InputError:
    files = sorted(each.name for each in folder.iterdir())
    weights = [name for name in files if name.endswith(".safetensors")]
    pickled = [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    if weights:
        rule = f"the folder holds {weights[0]}, but neither {WHOLE} nor {INDEX}"
        return InputError(rule, source=str(folder), remedy=f"name one file of weights {WHOLE}, or fetch the index")
    if pickled:
        rule = f"the folder holds weights as {pickled[0]}, which are pickled; only safetensors are read"
        remedy = "convert them: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        return InputError(rule, source=str(folder), remedy=remedy)
    return InputError(f"the folder holds no {WHOLE} and no {INDEX}", source=str(folder))


def _sharded(index: Path) -> list[TensorEntry]:
    """Return the tensors of all files that the index names; each tensor lies in one file, those of the index do."""
    mapped = _weight_map(index)
    entries: dict[str, TensorEntry] = {}
    for name in sorted(set(mapped.values())):
        file = index.parent / name
        if not file.is_file():
            needing = next(tensor for tensor, shard in mapped.items() if shard == name)
            rule = f"the file is missing; {index.name} says that it holds {needing}"
            raise InputError(rule, source=str(file), remedy=_FETCH)
        _merge(entries, read_header(file))
    for tensor, shard in mapped.items():
        found = entries.get(tensor)
        if found is None or found.file.name != Path(shard).name:
            rule = f"{index.name} says that the file holds the tensor; it does not"
            raise InputError(rule, source=str(index.parent / shard), field=tensor, remedy=_FETCH)
    return list(entries.values())


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json_object(read_text(index), source=str(index), remedy="fetch the index again")
    mapped = content.get("weight_map")
    if not isinstance(mapped, dict) or not mapped:
        raise InputError("must map each tensor to its file", source=str(index), field="weight_map", remedy=_FETCH)
    for tensor, shard in cast("dict[str, object]", mapped).items():
        if not isinstance(shard, str) or not shard:
            raise InputError("must be the name of a file", source=str(index), field=tensor, value=shard, remedy=_FETCH)
    return cast("dict[str, str]", mapped)


def _merge(entries: dict[str, TensorEntry], more: Iterable[TensorEntry]) -> None:
    for entry in more:
        other = entries.setdefault(entry.name, entry)
        if other is not entry:
            rule = f"the tensor lies in {other.file.name} as well"
            remedy = "keep one of them; files of two checkpoints may have been mixed"
            raise InputError(rule, source=str(entry.file), field=entry.name, remedy=remedy)
