"""What the run time says, in the words of the control plane, and what that decides, in the run time's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moiety.control.commands import Drain, Refuse, ScaleUp, StandBack
from moiety.control.events import Heartbeat, Moved
from moiety.control.state import Status, wanted_map
from moiety.errors import InputError
from moiety.placement.migration.order import Move as SlotMove
from moiety.placement.recovery import EMPTY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from moiety.control.commands import Command, Move
    from moiety.control.state import State
    from moiety.placement.placement import Placement
    from moiety.placement.problem import SlotMap
    from moiety.runtime.elastic.hand import Sign
    from moiety.serve.looked_after import LookedAfter

_UNKNOWN = -1
"""As a source slot: whichever holds the expert."""


def heartbeats(
    signs: Sequence[Sign], of: LookedAfter, homes: Sequence[int], heard_before: Sequence[float]
) -> Iterator[Heartbeat]:
    """Give a heartbeat of each rank all of whose processes were heard, and one of them lately.

    `homes` are those of the generation in force, by rank; `heard_before` says up to when each rank's signs are known.
    """
    by_home = {each.home: each for each in signs if each.is_in}
    for rank in range(of.deployment.num_ranks):
        parts = [by_home[home] for home in of.homes_of(rank) if home in by_home]
        heard_s = min((each.heard_s for each in parts), default=0.0)
        if len(parts) < of.gpus_per_rank or heard_s <= heard_before[rank]:
            continue
        awaited = next((each.waits_for for each in parts if each.waits_for is not None), None)
        yield Heartbeat(
            time_s=heard_s,
            rank=rank,
            epoch=min(each.generation for each in parts),
            progress=sum(each.count for each in parts),
            waiting=all(each.waits for each in parts),
            loading=any(each.loads for each in parts),
            waits_for=None if awaited is None or awaited >= len(homes) else of.rank_of(homes[awaited]),
        )


def positions(of: LookedAfter, homes: Sequence[int]) -> dict[int, int]:
    """Return the place among the expert ranks of a generation that each rank has, given its homes by rank."""
    found = dict.fromkeys(of.rank_of(home) for home in homes)
    return {rank: place for place, rank in enumerate(found)}


def whole_map(state: State) -> SlotMap:
    """Return the map that is wanted, [layers, ranks, slots], for ranks that leave too.

    Where the others get more slots, what is left empty of theirs holds once more what their first slot does.
    """
    found = wanted_map(state)
    leaving = state.ranks.status == Status.LEAVING
    return np.where((found == EMPTY) & leaving[None, :, None], found[:, :, :1], found)


def done_moves(state: State, placement: Placement, places: Mapping[int, int], now_s: float) -> tuple[Moved, ...]:
    """Return the reports of pending moves that are done in a map that serves; see `positions`."""
    width = placement.slots_per_rank
    found: list[Moved] = []
    for move in state.pending:
        if move.rank not in places or move.slot >= width:
            continue
        row = placement.physical_to_logical_map[move.layer]
        if row[places[move.rank] * width + move.slot] == move.expert:
            found.append(Moved(now_s, state.epoch, *move[:4]))
    return tuple(found)


def slot_moves(moves: Sequence[Move], placement: Placement, places: Mapping[int, int]) -> tuple[SlotMove, ...]:
    """Return moves between ranks as moves between the slots of a map that serves; see `positions`.

    Raises InputError for one of a rank or a slot that is not in that map: then none of them may be made, as they were
    decided for another one.
    """
    width = placement.slots_per_rank
    found: list[SlotMove] = []
    for number, move in enumerate(moves):
        if not 0 <= move.slot < width:
            rule = f"rank {move.rank} has slots 0 to {width - 1}"
            raise InputError(rule, field=f"moves[{number}].slot", value=move.slot)
        for name, rank in (("rank", move.rank), ("source", move.source)):
            if rank is not None and rank not in places:
                raise InputError("no such rank serves", field=f"moves[{number}].{name}", value=rank)
        row, source = placement.physical_to_logical_map[move.layer], _UNKNOWN
        if move.source is not None:
            first = places[move.source] * width
            held = row[first : first + width]
            source = first + held.index(move.expert) if move.expert in held else _UNKNOWN
        found.append(SlotMove(move.layer, places[move.rank] * width + move.slot, move.expert, source, move.step))
    return tuple(found)


def told(command: Command) -> str | None:
    """Return what whoever looks after the server is told of a command; None of those that go without saying."""
    if isinstance(command, (Refuse, StandBack)):
        return command.reason
    if not isinstance(command, (Drain, ScaleUp)):
        return None
    nodes, what = command.num_nodes, "give their experts away, and end" if isinstance(command, Drain) else "are started"
    return f"{nodes} {'node holds' if nodes == 1 else 'nodes hold'} what is asked for: ranks {[*command.ranks]} {what}"
