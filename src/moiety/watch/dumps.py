"""Expert-distribution dumps as they appear in a folder: each is read once, whole, and counted by expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from moiety.errors import InputError
from moiety.files import read_bytes
from moiety.placement.engine_map import moe_rows
from moiety.workload.routing import read_routing

if TYPE_CHECKING:
    from collections.abc import Collection
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


def read_dumps(folder: Path, known: Collection[Mark], model: Model, num_experts: int) -> Dumps:
    """Return what the dumps hold that are not `known`; a folder that is not there yet is empty.

    Raises InputError where the folder cannot be looked into.
    """
    there = _marks(folder)
    counts: Loads | None = None
    slot_map: SlotMap | None = None
    read, broken = set[Mark](), dict[Mark, str]()
    for mark in sorted(there - frozenset(known), key=lambda each: (each.mtime_ns, each.name)):
        try:
            found, held = _read(folder / mark.name, model, num_experts)
        except InputError as error:
            broken[mark] = str(error.at(mark.name))
            continue
        read.add(mark)
        counts = found if counts is None else counts + found
        slot_map = slot_map if held is None else held
    return Dumps(there, frozenset(read), broken, counts, slot_map)


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


def _read(path: Path, model: Model, num_experts: int) -> tuple[Loads, SlotMap | None]:
    """Return a dump's tokens by expert, and its slot map where it has one, both with a row for each MoE layer."""
    routing = read_routing(read_bytes(path), source=path.name, num_experts=num_experts)
    rows = moe_rows(routing.num_layers, model, path.name)
    held = routing.slot_map
    if held is not None and int(held.max()) >= num_experts:
        rule = f"names expert {int(held.max())}, the model has {num_experts}"
        raise InputError(rule, source=path.name, field="last_physical_to_logical_map")
    return routing.counts.sum(axis=0)[rows], None if held is None else held[moe_rows(len(held), model, path.name)]


def nothing_read() -> Dumps:
    """Return what no look has found."""
    return Dumps(frozenset(), frozenset(), {}, None, None)
