"""What `moiety place` has found: the placement, its figures beside another's, and its JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moiety.cli.place_machine import Machine
    from moiety.placement.metrics import PlacementMetrics
    from moiety.placement.migration.order import Move
    from moiety.placement.placement import Placement
    from moiety.placement.problem import PlacementProblem, SlotMap

MIGRATION = "migration"
"""What a placement that few moves make of a previous one is called instead of a method."""


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """What it takes to come from the previous placement to the new one."""

    previous: SlotMap
    before: PlacementMetrics
    """Figures of the previous placement under the new loads."""
    max_moves: int | None
    moves_per_layer: tuple[int, ...]
    """Slots that change."""
    num_copies: int
    """Changed slots whose expert comes from another GPU."""
    size_bytes: float | None
    """Copied between GPUs; None where the size of an expert is not known."""
    network_bytes: float | None
    """Of these, what leaves its node."""
    time_s: float | None
    """On the busiest port of a GPU; None where the links are not known."""
    moves: tuple[Move, ...] | None
    """In an order in which they can be carried out; None where the map was made anew."""

    def document(self, layers: tuple[int, ...]) -> dict[str, object]:
        """Return the migration as JSON; `layers` numbers the rows as the model does."""
        ordered = None
        if self.moves is not None:
            ordered = [
                {
                    "layer": layers[each.layer],
                    "slot": each.slot,
                    "expert": each.expert,
                    "source_slot": each.source_slot,
                    "step": each.step,
                }
                for each in self.moves
            ]
        return {
            "max_moves": self.max_moves,
            "num_moves": sum(self.moves_per_layer),
            "moves_per_layer": list(self.moves_per_layer),
            "num_copies": self.num_copies,
            "bytes": self.size_bytes,
            "network_bytes": self.network_bytes,
            "seconds": self.time_s,
            "before": self.before.model_dump(mode="json"),
            "moves": ordered,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A placement, what it was made of, and how good it is."""

    source: str
    machine: Machine
    problem: PlacementProblem
    slot_map: SlotMap
    placement: Placement
    metrics: PlacementMetrics
    compared: tuple[str, SlotMap, PlacementMetrics] | None
    """Another method's map of the same problem and its figures."""
    moved: Moved | None
    seconds: dict[str, float]
    """What reading, solving, comparing and measuring took."""

    @property
    def nodes_as_one(self) -> int:
        """How many neighbouring nodes the joint method took for one; 1 where it told all apart."""
        if self.placement.method != "joint" or self.problem.topk is None:
            return 1
        from moiety.placement.methods.joint import num_searched_nodes

        return self.problem.num_nodes // num_searched_nodes(self.problem.num_nodes)

    def document(self) -> dict[str, object]:
        """Return everything as JSON: the placement's own keys, then its figures."""
        problem = self.problem
        tokens = None if problem.topk is None else problem.topk.shape[1]
        return {
            **self.placement.model_dump(mode="json"),
            "num_slots": problem.num_slots,
            "routing": {
                "source": self.source,
                "num_windows": len(problem.counts),
                "num_tokens": tokens,
                "top_k": None if problem.topk is None else problem.topk.shape[2],
            },
            "metrics": self.metrics.model_dump(mode="json"),
            "compared_with": None
            if self.compared is None
            else {"method": self.compared[0], "metrics": self.compared[2].model_dump(mode="json")},
            "migration": None if self.moved is None else self.moved.document(self.placement.layers),
            "seconds": {name: round(each, 6) for name, each in self.seconds.items()},
        }
