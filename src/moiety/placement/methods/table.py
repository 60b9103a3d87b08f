"""The placement methods, by name."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from moiety.placement.methods.balance import balance
from moiety.placement.methods.eplb import eplb, eplb_global
from moiety.placement.methods.joint import joint
from moiety.placement.methods.linear_map import linear
from moiety.placement.methods.round_robin import round_robin

if TYPE_CHECKING:
    from collections.abc import Callable

    from moiety.placement.problem import PlacementProblem, SlotMap

Method: TypeAlias = "Callable[[PlacementProblem], SlotMap]"
"""What makes a map, [layers, slots], of a problem."""


METHODS: dict[str, Method] = {
    "linear": linear,
    "round-robin": round_robin,
    "eplb": eplb,
    "eplb-global": eplb_global,
    "balance": balance,
    "joint": joint,
}

QUICK: dict[str, Method] = {**METHODS, "joint": partial(joint, effort=0.0)}
"""The same for choosing between machines' shapes: what searches long by default descends once."""
