"""Placement: which physical slot holds a copy of which logical expert, layer by layer."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from moiety.placement.serving.routed_traffic import RoutedTraffic
from moiety.records import Record


class Placement(Record):
    """Where each expert of one pipeline stage (or of a whole instance without pipeline stages) lives.

    Slot p lives on GPU `p // (slots / num_gpus)`, GPU g on node `g // (num_gpus / num_nodes)`. Where experts are
    tensor-parallel over `expert_tp` GPUs there are fewer slots than GPUs, and slot p fills the `expert_tp` GPUs from
    that one on. GPUs count from the first of the stage that holds the layer.
    """

    method: str
    layers: tuple[int, ...]
    """Index in the model of each row of the map."""
    physical_to_logical_map: tuple[tuple[int, ...], ...]
    """[layers][slots]"""
    num_gpus: Annotated[int, Field(gt=0)]
    num_nodes: Annotated[int, Field(gt=0)]
    num_logical_experts: Annotated[int, Field(gt=0)]
    expert_tp: Annotated[int, Field(gt=0)] = 1
    traffic: RoutedTraffic | None = Field(default=None, exclude_if=lambda value: value is None)
    """What the tokens of a trace reach under this map; None where only loads are known."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if len(self.layers) != len(self.physical_to_logical_map):
            msg = f"{len(self.layers)} layers but {len(self.physical_to_logical_map)} rows of the map"
            raise ValueError(msg)
        if self.num_gpus % self.expert_tp or self.num_gpus % self.num_nodes:
            msg = f"expert_tp={self.expert_tp} and num_nodes={self.num_nodes} must divide num_gpus={self.num_gpus}"
            raise ValueError(msg)
        everyone = set(range(self.num_logical_experts))
        for row in dict.fromkeys(self.physical_to_logical_map):
            layer = self.layers[self.physical_to_logical_map.index(row)]
            if len(row) % self.num_expert_ranks:
                msg = f"layer {layer}: {len(row)} slots do not divide over {self.num_expert_ranks} expert ranks"
                raise ValueError(msg)
            held = set(row)
            if held != everyone:
                missing, strange = sorted(everyone - held)[:3], sorted(held - everyone)[:3]
                msg = f"layer {layer}: experts without a slot: {missing}; slots with unknown experts: {strange}"
                raise ValueError(msg)
        loads = self.traffic.rank_loads if self.traffic else ()
        if loads and (len(loads) != len(self.layers) or {len(row) for row in loads} != {self.num_expert_ranks}):
            msg = f"the served loads are not of {len(self.layers)} layers x {self.num_expert_ranks} expert ranks"
            raise ValueError(msg)
        return self

    @property
    def num_expert_ranks(self) -> int:
        """Expert-parallel ranks; each is `expert_tp` GPUs."""
        return self.num_gpus // self.expert_tp

    @property
    def num_slots(self) -> int:
        """Physical slots of a layer."""
        return len(self.physical_to_logical_map[0])

    @property
    def has_copies(self) -> bool:
        """Whether some expert has more than one slot."""
        return self.num_slots > self.num_logical_experts

    @property
    def slots_per_rank(self) -> int:
        """Physical slots of a layer on each expert-parallel rank."""
        return self.num_slots // self.num_expert_ranks

    def experts_of_rank(self, row: int, rank: int) -> tuple[int, ...]:
        """Return the logical experts of row number `row` that expert-parallel rank `rank` holds."""
        width = self.slots_per_rank
        return self.physical_to_logical_map[row][rank * width : (rank + 1) * width]
