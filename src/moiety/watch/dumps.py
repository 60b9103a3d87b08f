"""Expert-distribution dumps as they appear in a folder: each is read once, whole, and counted by expert.

SGLang's ranks write a file each in the modes `per_pass` and `per_token`, at their own pace: together they are one dump.
What they recorded are the same tokens, or others, or what the rank's own experts got, by how the engine exchanges.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moiety.errors import InputError
from moiety.files import read_bytes
from moiety.placement.engine_map import moe_rows
from moiety.workload.routing import read_routing

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from moiety.model.model import Model
    from moiety.placement.problem import Loads, SlotMap

SUFFIXES = (".pt", ".npz", ".json")


class Mark(NamedTuple):
    """A file as it was: another one of that name is another dump."""

    name: str
    num_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Dumps:
    """What has appeared in the folder."""

    there: frozenset[Mark]
    """All dumps that are in it."""
    read: frozenset[Mark]
    """Those that were read now."""
    broken: dict[Mark, str]
    """Those that cannot be read, and why; one that is still being written is among them."""
    counts: Loads | None
    """Tokens by expert of those read now, [MoE layers, experts]; None where none was read."""
    slot_map: SlotMap | None
    """What the engine held when the newest of them was written, [MoE layers, slots], where they say."""
    awaiting: frozenset[Mark] = frozenset()
    """Those that could be read, of dumps to which other ranks' files are still to come."""


@dataclass(frozen=True, slots=True, eq=False)
class _File:
    """What one file holds."""

    mark: Mark
    counts: Loads
    """[MoE layers, experts]"""
    slot_map: SlotMap | None
    recorded_by: tuple[int, int, int] | None
    """Rank, first and last forward pass; None: the file is a whole dump."""


def read_dumps(
    folder: Path,
    known: Collection[Mark],
    model: Model,
    num_experts: int,
    *,
    num_ranks: int = 1,
    doubtful: Collection[Mark] = (),
) -> Dumps:
    """Return what the dumps hold that are not `known`; a folder that is not there yet is empty.

    Of an engine of `num_ranks` ranks (GPUs) that write a file each, a dump is read when all are there, or those that
    are were `doubtful`, so seen in the look before, and no other one is being written: then no more are expected.
    Raises InputError where the folder cannot be looked into.
    """
    there = _marks(folder)
    files, broken = list[_File](), dict[Mark, str]()
    for mark in sorted(there - frozenset(known), key=_age):
        try:
            files.append(_read(folder, mark, model, num_experts))
        except InputError as error:
            broken[mark] = str(error.at(mark.name))
    is_writing = not broken.keys() <= frozenset(doubtful)
    taken, awaiting = list[list[_File]](), list[_File]()
    for dump in _dumps_of(files):
        is_settled = not is_writing and all(each.mark in doubtful for each in dump)
        if is_settled or _is_whole(dump, num_ranks):
            taken.append(dump)
        else:
            awaiting += dump
    read = sorted((each for dump in taken for each in dump), key=lambda each: _age(each.mark))
    held = [each.slot_map for each in read if each.slot_map is not None]
    return Dumps(
        there,
        frozenset(each.mark for each in read),
        broken,
        np.sum([_counts(dump) for dump in taken], axis=0) if taken else None,
        held[-1] if held else None,
        frozenset(each.mark for each in awaiting),
    )


def _age(mark: Mark) -> tuple[int, str]:
    return mark.mtime_ns, mark.name


def _dumps_of(files: Sequence[_File]) -> list[list[_File]]:
    """Return the files of each dump: those that ranks write at once are of the same forward passes, more or less."""
    found = [[each] for each in files if each.recorded_by is None]
    last = -1
    for (_, first, end), each in sorted(
        ((each.recorded_by, each) for each in files if each.recorded_by is not None), key=lambda pair: pair[0][1:]
    ):
        if first > last:
            found.append([])
        found[-1].append(each)
        last = max(last, end)
    return found


def _is_whole(dump: Sequence[_File], num_ranks: int) -> bool:
    """Return whether the files are all of a dump: one without ranks, or equally many of every rank."""
    each = Counter(file.recorded_by[0] for file in dump if file.recorded_by is not None)
    return not each or (len(each) >= num_ranks and min(each.values()) == max(each.values()))


def _counts(dump: Sequence[_File]) -> Loads:
    """Return the dump's tokens by expert; those of ranks that have recorded the same ones count once."""
    distinct = {each.counts.tobytes(): each.counts for each in dump}
    total: Loads = np.sum([*distinct.values()], axis=0)
    return total


def _marks(folder: Path) -> frozenset[Mark]:
    found = set[Mark]()
    try:
        for path in folder.iterdir():
            if path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file():
                about = path.stat()
                found.add(Mark(path.name, about.st_size, about.st_mtime_ns))
    except FileNotFoundError:  # the folder, or a file that has gone meanwhile: the next look finds what is left
        return frozenset(found)
    except OSError as error:
        raise InputError(f"cannot be looked into: {error.strerror}", source=str(folder), field="--dumps") from None
    return frozenset(found)


def _read(folder: Path, mark: Mark, model: Model, num_experts: int) -> _File:
    """Return a file's tokens by expert, and its slot map where it has one, both with a row for each MoE layer."""
    path = folder / mark.name
    routing = read_routing(read_bytes(path), source=path.name, num_experts=num_experts)
    rows = moe_rows(routing.num_layers, model, path.name)
    held = routing.slot_map
    if held is not None and int(held.max()) >= num_experts:
        rule = f"names expert {int(held.max())}, the model has {num_experts}"
        raise InputError(rule, source=path.name, field="last_physical_to_logical_map")
    slot_map = None if held is None else held[moe_rows(len(held), model, path.name)]
    return _File(mark, routing.counts.sum(axis=0)[rows], slot_map, routing.recorded_by)


def nothing_read() -> Dumps:
    """Return what no look has found."""
    return Dumps(frozenset(), frozenset(), {}, None, None)
