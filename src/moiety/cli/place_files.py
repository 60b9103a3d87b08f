"""What `moiety place` reads beside the options: the routing, a previous placement, and the speeds of the GPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from moiety.errors import InputError
from moiety.files import read_bytes, read_text
from moiety.json_object import read_json_object
from moiety.placement.engine_map import MAP_KEY, moe_rows
from moiety.workload.routing import Routing, read_routing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.model.model import Model
    from moiety.placement.problem import Loads, SlotMap

_MAX_BYTES = 512 * 10**6
_REMEDY = "give what `moiety place --out` writes, or SGLang's expert location as JSON"
_MOST = 2**31
_MOST_FASTER = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Previous:
    """A placement that is in use: its map, [layers, slots], and what its file says of the machine."""

    source: str
    slot_map: SlotMap
    num_gpus: int | None
    num_nodes: int | None
    num_experts: int


def load_routing(argument: str, model: Model | None, num_experts: int | None) -> Routing:
    """Return the routing of a dump, with one row a MoE layer of the model where that is known.

    Raises InputError for what is no dump, and for one of another model.
    """
    routing = read_routing(read_bytes(argument), source=argument, num_experts=num_experts)
    if model is None:
        return routing
    rows = moe_rows(routing.num_layers, model, argument)
    if len(rows) == routing.num_layers:
        return routing
    topk = None if routing.topk is None else routing.topk[rows]
    return replace(routing, counts=np.ascontiguousarray(routing.counts[:, rows]), topk=topk)


def read_previous(argument: str) -> Previous:
    """Return the placement in a file of ours or of SGLang's; raise InputError for anything else."""
    document = read_json_object(read_text(argument, limit=_MAX_BYTES), source=argument, remedy=_REMEDY)
    if MAP_KEY not in document:
        raise InputError("holds no placement", source=argument, field=MAP_KEY, remedy=_REMEDY)
    slot_map = _slot_map(document[MAP_KEY], argument)
    num_gpus, num_nodes = _count(document, "num_gpus", argument), _count(document, "num_nodes", argument)
    if num_gpus is not None and num_nodes is not None and num_gpus % num_nodes:
        raise InputError(f"must divide {num_gpus} GPUs", source=argument, field="num_nodes", value=num_nodes)
    highest = int(slot_map.max())
    experts = _count(document, "num_logical_experts", argument) or highest + 1
    if experts <= highest:
        rule = f"{MAP_KEY} has expert {highest}, numbered from 0"
        raise InputError(rule, source=argument, field="num_logical_experts", value=experts)
    shared = _count(document, "expert_tp", argument) or 1
    if shared > 1:
        rule = "experts that several GPUs share are not placed anew"
        raise InputError(rule, source=argument, field="expert_tp", value=shared, remedy="plan with --routing instead")
    return Previous(source=argument, slot_map=slot_map, num_gpus=num_gpus, num_nodes=num_nodes, num_experts=experts)


def _slot_map(value: object, source: str) -> SlotMap:
    rows = cast("list[object]", value) if isinstance(value, list) else []
    if not rows or not all(isinstance(row, list) for row in rows) or [] in rows:
        raise InputError("must be a list of layers, each a list of slots", source=source, field=MAP_KEY)
    lengths = [len(cast("list[object]", row)) for row in rows]
    for index, length in enumerate(lengths):
        if length != lengths[0]:
            rule = f"has {length} slots, layer 0 has {lengths[0]}"
            raise InputError(rule, source=source, field=f"{MAP_KEY}[{index}]")
    for index, row in enumerate(cast("list[list[object]]", rows)):
        for slot, expert in enumerate(row):
            if type(expert) is not int or not 0 <= expert < _MOST:
                field = f"{MAP_KEY}[{index}][{slot}]"
                raise InputError("must be the number of an expert, from 0", source=source, field=field, value=expert)
    return np.array(rows, dtype=np.int64)


def _count(document: dict[str, object], key: str, source: str) -> int | None:
    value = document.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 < value < _MOST:
        raise InputError("must be a whole number above 0", source=source, field=key, value=value)
    return value


def check_previous(previous: Previous, routing: Routing, model: Model | None, num_gpus: int) -> SlotMap:
    """Return the map of a previous placement as rows of the routing; raise InputError where it is of other experts."""
    slots = previous.slot_map
    if model is not None:
        slots = slots[moe_rows(len(slots), model, previous.source)]
    if len(slots) != routing.num_layers:
        rule = f"has {len(slots)} layers, the routing {routing.num_layers}"
        raise InputError(rule, source=previous.source, field=MAP_KEY)
    found, experts = previous.num_experts, routing.num_experts
    if found != experts:
        remedy = f"--experts {found}, if the last ones are never used" if found > experts else None
        rule = f"places {found} experts, the routing has {experts}"
        raise InputError(rule, source=previous.source, field=MAP_KEY, remedy=remedy)
    if slots.shape[1] % num_gpus:
        rule = f"has {slots.shape[1]} slots, which do not divide over {num_gpus} GPUs"
        raise InputError(rule, source=previous.source, field=MAP_KEY)
    held = np.zeros((len(slots), experts), dtype=np.bool_)
    held[np.arange(len(slots))[:, None], slots] = True
    if not held.all():
        row, expert = np.argwhere(~held)[0].tolist()
        raise InputError(f"has no slot with expert {expert}", source=previous.source, field=f"{MAP_KEY}[{row}]")
    return slots


def gpu_speeds(argument: str, num_gpus: int) -> Loads:
    """Return the relative speeds of the GPUs: numbers in the argument itself, or in the file that it names."""
    words = _words(argument)
    source = None
    if words == [""]:
        raise InputError("must be numbers or name a file of them", field="--gpu-speed", value=argument)
    if not all(_number(word) is not None for word in words):
        source = argument
        words = _words(read_text(Path(argument)))
    rule = f"must be {num_gpus} positive numbers, one a GPU, with commas or spaces between"
    if len(words) != num_gpus:
        raise InputError(f"{rule}; there are {len(words)}", source=source, field="--gpu-speed")
    speeds = np.array([_number(word) or np.nan for word in words])
    wrong = np.flatnonzero(~((speeds >= 1 / _MOST) & (speeds <= _MOST)))
    if wrong.size:
        gpu = int(wrong[0])
        raise InputError(f"{rule}; GPU {gpu} has {words[gpu][:80]}", source=source, field="--gpu-speed")
    if speeds.max() > _MOST_FASTER * speeds.min():
        rule = f"the fastest GPU may be {_MOST_FASTER:,} times as fast as the slowest"
        raise InputError(rule, source=source, field="--gpu-speed", value=f"{speeds.min():g} to {speeds.max():g}")
    return speeds


def _words(text: str) -> Sequence[str]:
    return re.split(r"[\s,]+", text.strip().removeprefix("[").removesuffix("]").strip())


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
