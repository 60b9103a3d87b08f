"""The state of a training in PyTorch's distributed checkpoint format (DCP), by transformers' names and global offsets.

What is saved under one division of the work is read under any other. The files are those of
`torch.distributed.checkpoint`, which its own tools read too; the ranks agree over our groups. The format's `.metadata`
is a pickle: read no checkpoint of somebody you do not trust.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from moiety.errors import InputError, OutputError
from moiety.files import write_all
from moiety.runtime.training.manifest import MANIFEST, Manifest, summed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import ReadItem
    from torch.distributed.checkpoint.storage import WriteResult

    from moiety.runtime.comm.group import Group
    from moiety.runtime.training.manifest import ManifestFile

Done = TypeVar("Done")

METADATA = ".metadata"
"""The file that makes a folder a distributed checkpoint."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A box of a tensor of the state, as one rank holds it."""

    name: str
    whole: tuple[int, ...]
    """Shape of the tensor."""
    offsets: tuple[int, ...]
    tensor: torch.Tensor
    """The rank's own memory, which reading fills."""

    @property
    def index(self) -> MetadataIndex:
        """What the format calls the box."""
        return MetadataIndex(self.name, torch.Size(self.offsets))

    @property
    def chunk(self) -> ChunkStorageMetadata:
        """Where in the whole the box lies."""
        return ChunkStorageMetadata(torch.Size(self.offsets), self.tensor.shape)


class NotWrittenError(Exception):
    """A state could not be written, for this reason; raised on all ranks alike."""


def write_state(entries: Sequence[Entry], folder: Path, world: Group, *, step: int) -> None:
    """Write the state of all ranks into a folder that is there and empty; every rank calls it with its own entries.

    A box that several ranks hold is written once. `step`, that the training has come to, goes into the manifest with
    a checksum of every box. Raises NotWrittenError, on every rank, where one cannot write.
    """
    writer = FileSystemWriter(folder, single_file_per_rank=True)
    planner = _Writing(entries)
    is_first = world.index == 0
    cast("Any", planner).set_up_planner({}, writer.storage_meta(), is_first)
    writer.set_up_storage_writer(is_first)
    local = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = planner.create_global_plan(cast("list[SavePlan]", world.gather_objects(local)))
    mine = planner.finish_plan(writer.prepare_global_plan(plans)[world.index])

    def write_boxes() -> tuple[list[WriteResult], list[ManifestFile]]:
        writing: Any = writer.write_data(mine, planner)
        results: list[WriteResult] = writing.wait()
        return results, _summed(results, folder)

    written = _by_all(write_boxes, world)

    def finish() -> None:
        if is_first:
            writer.finish(metadata, [results for results, _ in written])
            head = summed(folder / METADATA, [(METADATA, (folder / METADATA).stat().st_size)])
            manifest = Manifest.of(step, [head, *(file for _, files in written for file in files)])
            write_all(folder, {MANIFEST: manifest.model_dump_json()})

    _by_all(finish, world)


def _by_all(work: Callable[[], Done], world: Group) -> list[Done]:
    """Return what every rank's work comes to, by rank; raise NotWrittenError on all where one's fails."""
    done, trouble = None, None
    try:
        done = work()
    except (OSError, RuntimeError, OutputError) as error:
        trouble = _reason(error)
    found = cast("list[tuple[Done, str | None]]", world.gather_objects((done, trouble)))
    first = next((words for _, words in found if words is not None), None)
    if first is not None:
        raise NotWrittenError(first)
    return [each for each, _ in found]


def _reason(error: BaseException) -> str:
    """Return what the system said; torch raises errors of its own while it handles that."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return str(error) if cause is None else cause.strerror or str(cause)


def _summed(results: Sequence[WriteResult], folder: Path) -> list[ManifestFile]:
    """Return the files that hold the boxes, a part a box."""
    boxes: dict[str, list[tuple[int, str, int]]] = {}
    for each in results:
        place = each.storage_data
        boxes.setdefault(place.relative_path, []).append((place.offset, each.index.fqn, place.length))
    return [
        summed(folder / name, [(tensor, size) for _, tensor, size in sorted(parts)]) for name, parts in boxes.items()
    ]


def read_state(entries: Sequence[Entry], folder: Path) -> None:
    """Fill a rank's entries with what a folder holds, whatever division it was written under.

    Raises InputError where it is no such checkpoint, or lacks an entry, or has one of another shape.
    """
    reader = FileSystemReader(folder)
    try:
        metadata = reader.read_metadata()
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ImportError) as error:
        raise InputError(f"is no distributed checkpoint: {error}", source=str(folder)) from None
    _check(entries, metadata, folder)
    planner = _Reading(entries)
    cast("Any", planner).set_up_planner({}, metadata, is_coordinator=False)
    reader.set_up_storage_reader(metadata, is_coordinator=False)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    reading: Any = reader.read_data(plan, planner)
    reading.wait()


def _check(entries: Sequence[Entry], metadata: Metadata, folder: Path) -> None:
    for each in entries:
        stored = metadata.state_dict_metadata.get(each.name)
        if not isinstance(stored, TensorStorageMetadata):
            raise InputError("the tensor is missing", source=str(folder), field=each.name, remedy=_REMEDY)
        if tuple(stored.size) != each.whole:
            rule = f"must have the shape {list(each.whole)}"
            raise InputError(rule, source=str(folder), field=each.name, value=list(stored.size), remedy=_REMEDY)


_REMEDY = "go on with the model that was trained"


class _Writing(DefaultSavePlanner):
    """Plans the writing of entries."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True)
        self._entries = {each.index: each for each in entries if each.tensor.numel()}

    def create_local_plan(self) -> SavePlan:
        """Return an item for each entry."""
        self.plan = SavePlan([_item(each) for each in self._entries.values()])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        """Return the tensor of an entry."""
        return self._entries[index].tensor


class _Reading(DefaultLoadPlanner):
    """Plans the reading of entries."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._entries = {each.index: each for each in entries if each.tensor.numel()}

    def create_local_plan(self) -> LoadPlan:
        """Return an item for each stored box that an entry overlaps with."""
        assert self.metadata is not None, "the planner is set up with the metadata"
        found: list[ReadItem] = []
        for each in self._entries.values():
            stored = self.metadata.state_dict_metadata[each.name]
            assert isinstance(stored, TensorStorageMetadata), "entries have been checked"
            found += create_read_items_for_chunk_list(each.name, stored, [each.chunk])
        return LoadPlan(found)

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        """Return the tensor of an entry."""
        return self._entries[MetadataIndex(index.fqn, index.offset)].tensor


def _item(entry: Entry) -> WriteItem:
    properties = TensorProperties.create_from_tensor(entry.tensor)
    data = TensorWriteData(entry.chunk, properties, torch.Size(entry.whole))
    return WriteItem(entry.index, WriteItemType.SHARD, tensor_data=data)
