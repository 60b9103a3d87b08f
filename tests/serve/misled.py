"""`moiety` whose controller hears the first moves for slots that no rank has, as if ranks had got others since."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moiety.cli.main import main
from moiety.serve import controller

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moiety.control.commands import Move
    from moiety.placement.migration.order import Move as SlotMove
    from moiety.placement.placement import Placement

translate = controller.slot_moves
is_first = True


def misled(moves: Sequence[Move], placement: Placement, places: Mapping[int, int]) -> tuple[SlotMove, ...]:
    """Translate moves, but for the first time with the last of them beyond its rank's slots."""
    global is_first  # noqa: PLW0603 - the process is one server's
    if is_first:
        is_first = False
        moves = [*moves[:-1], moves[-1]._replace(slot=placement.slots_per_rank)]
    return translate(moves, placement, places)


if __name__ == "__main__":
    controller.slot_moves = misled
    main()
