"""Holdings: the weights that a rank's process keeps from one generation to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from moiety.errors import InputError
from moiety.runtime.elastic.handover import Holding, Transfer
from moiety.runtime.elastic.replan import CoverageLostError
from moiety.runtime.elastic.slots import Arrival, empty_like, joined, send
from moiety.runtime.experts.supply import read_experts
from moiety.runtime.model.supply import CheckpointSupply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moiety.runtime.block_scaled import CodeFormat, Weight
    from moiety.runtime.checkpoint.index import Checkpoint
    from moiety.runtime.comm.bulk import BulkGroup
    from moiety.runtime.comm.pending import Pending
    from moiety.runtime.elastic.beacon import Beacon
    from moiety.runtime.elastic.slots import Place
    from moiety.runtime.experts.weights import ExpertWeights
    from moiety.runtime.seat import Seat

_DenseKey = tuple[str, tuple[tuple[int | None, int | None], ...], "torch.dtype", bool]
"""Of a parameter: its name, the slices, the format of products, and whether it is asked for in FP8."""


@dataclass(slots=True)
class HeldExperts:
    """A layer's slots."""

    experts: tuple[int, ...]
    etp: int
    part: int
    weights: ExpertWeights


@dataclass(slots=True)
class Exchange:
    """How this rank reaches the others while weights are handed over."""

    rank: int
    group: BulkGroup
    transfers: Mapping[int, list[Transfer]]


@dataclass(slots=True)
class Holdings:
    """A supply of weights (`WeightSupply`): what is here stays, what peers hold comes from them, the rest is read.

    A layer is whole at any time: where its handover fails, what was there before is there still.
    """

    device: torch.device
    beacon: Beacon
    """Hears of every tensor that has come."""
    exchange: Exchange | None = None
    """None: nobody gives this rank anything."""
    layers: dict[int, HeldExperts] = field(default_factory=dict[int, HeldExperts])
    _checkpoint: CheckpointSupply | None = None
    _dense: dict[_DenseKey, Weight] = field(default_factory=dict["_DenseKey", "Weight"])
    _used: dict[_DenseKey, Weight] = field(default_factory=dict["_DenseKey", "Weight"])

    def open(self, checkpoint: Checkpoint, parameters: Mapping[str, tuple[int, ...]]) -> None:
        """Compare model and checkpoint, the first time."""
        if self._checkpoint is None:
            supply = CheckpointSupply(self.device)
            supply.open(checkpoint, parameters)
            self._checkpoint = supply
        self._used = {}

    @property
    def bytes_read(self) -> int:
        """Bytes read from the checkpoint, in all generations."""
        return 0 if self._checkpoint is None else self._checkpoint.bytes_read

    def settle(self, layers: range) -> None:
        """Let go of what the model that was built last does not use."""
        self._dense, self._used = self._used, {}
        for layer in [each for each in self.layers if each not in layers]:
            del self.layers[layer]

    def holding(self) -> Holding:
        """Return which experts are here."""
        some = next(iter(self.layers.values()), None)
        if some is None:
            return Holding({})
        alike = {layer: each.experts for layer, each in self.layers.items() if _parts(each) == _parts(some)}
        return Holding(alike, some.etp, some.part)

    def dense(self, name: str, slices: tuple[slice, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a slice of a parameter, read where it is not here; see `WeightSupply`."""
        found = self._kept(name, slices, dtype, in_fp8=False)
        assert isinstance(found, torch.Tensor), "nobody asked for FP8"
        return found

    def matrix(self, name: str, slices: tuple[slice, ...], dtype: torch.dtype) -> Weight:
        """Return a slice of a matrix, read where it is not here; see `WeightSupply`."""
        return self._kept(name, slices, dtype, in_fp8=True)

    def _kept(self, name: str, slices: tuple[slice, ...], dtype: torch.dtype, *, in_fp8: bool) -> Weight:
        assert self._checkpoint is not None, "it is opened first"
        read: Callable[..., Weight] = self._checkpoint.matrix if in_fp8 else self._checkpoint.dense
        key = (name, tuple((each.start, each.stop) for each in slices), dtype, in_fp8)
        if key not in self._dense:
            self._dense[key] = read(name, slices, dtype)
        self._used[key] = self._dense[key]
        self.beacon.mark("load")
        return self._dense[key]

    def experts(
        self,
        seat: Seat,
        layer: int,
        prefix: str,
        module: Any,  # noqa: ANN401 - as in `ExpertSupply`
        experts: tuple[int, ...],
        *,
        codes: CodeFormat | None,
    ) -> ExpertWeights:
        """Return a layer's slots, after all transfers of the layer; see `ExpertSupply`."""
        etp, part = seat.strategy.etp, seat.coordinates["etp"]
        before = self.layers.get(layer)
        if before is not None and _parts(before) != (etp, part):
            before = None
        places: dict[int, Place] = {}
        if before is not None:
            places = {expert: (before.weights, slot) for slot, expert in enumerate(before.experts)}
            places = self._handed_over(layer, before, places)
        if before is None or before.experts != experts:
            missing = tuple(expert for expert in dict.fromkeys(experts) if expert not in places)
            if missing:
                read = self._read(seat, layer, prefix, module, missing, codes=codes, is_recovery=before is not None)
                places |= {expert: (read, slot) for slot, expert in enumerate(missing)}
            weights = joined([places[expert] for expert in experts])
            self.layers[layer] = HeldExperts(experts, etp, part, weights)
        self.beacon.mark("load", layer)
        return self.layers[layer].weights

    def _handed_over(self, layer: int, before: HeldExperts, here: dict[int, Place]) -> dict[int, Place]:
        """Send and receive what is due in a layer; return where each expert lies that is here or has come."""
        exchange = self.exchange
        due = [] if exchange is None else exchange.transfers.get(layer, [])
        if exchange is None or not due:
            return here
        coming = [each for each in due if each.target == exchange.rank]
        room = empty_like(before.weights, len(coming))
        sent: list[Pending] = []
        arrivals: list[Arrival] = []
        for each in due:
            if each.source == exchange.rank:
                sent += send(exchange.group, each.target, here[each.expert])
            elif each.target == exchange.rank:
                arrivals.append(Arrival(exchange.group, each.source, (room, len(arrivals))))
        for each in arrivals:
            each.wait()
        for each in sent:
            each.wait()
        return here | {each.expert: (room, slot) for slot, each in enumerate(coming)}

    def _read(
        self,
        seat: Seat,
        layer: int,
        prefix: str,
        module: Any,  # noqa: ANN401 - transformers' experts
        experts: tuple[int, ...],
        *,
        codes: CodeFormat | None,
        is_recovery: bool,
    ) -> ExpertWeights:
        assert self._checkpoint is not None, "it is opened first"
        try:
            return read_experts(seat, module, self._checkpoint.source, prefix, experts, self.device, codes=codes)
        except (InputError, OSError) as error:
            if not is_recovery:
                raise
            named = ", ".join(str(each) for each in experts)
            rule = (
                f"layer {layer}: experts {named} have no copy on the ranks that are left, and cannot be read: {error}"
            )
            raise CoverageLostError(rule) from error


def _parts(held: HeldExperts) -> tuple[int, int]:
    return held.etp, held.part
