"""Generation: what a rank has in hand from one regrouping to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from moiety.runtime.comm.priority import Priority
from moiety.runtime.conversion import integers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moiety.plan import Plan
    from moiety.runtime.comm.network import Network
    from moiety.runtime.elastic.beacon import Beacon
    from moiety.runtime.elastic.migration import Mover
    from moiety.runtime.model.rank_model import RankModel
    from moiety.runtime.overlap import Turns
    from moiety.runtime.seat import Seat


class Process(Protocol):
    """What a generation needs of the rank's process (`Member`)."""

    beacon: Beacon

    def check(self, generation: int) -> None:
        """Raise GenerationEndedError where that generation has ended."""
        ...

    def received(self, generation: int, timeout_s: float) -> list[object]:
        """Return what the launcher has sent in a generation."""
        ...

    def say(self, generation: int, payload: object) -> None:
        """Tell the launcher what the driver's other half says."""
        ...

    def switched(self, generation: int, batch: int) -> None:
        """Tell the launcher that a batch of moves is in force."""
        ...


class Generation:
    """A rank among the others of a generation: its model, and the boundary between two steps."""

    def __init__(
        self,
        process: Process,
        number: int,
        network: Network,
        model: RankModel,
        turns: Turns,
        mover: Mover | None,
        *,
        keeps_cache: bool,
    ) -> None:
        self.number, self.network, self.model, self.turns = number, network, model, turns
        self.keeps_cache = keeps_cache
        """Whether the ranks of its attention group and pipeline are who they were in its last generation,
        and divide the layers as they did: then what they have cached is valid as far as all of them have it."""
        self.num_steps = 0
        """Boundaries so far."""
        self._process, self._mover = process, mover
        self._world = network.group(tuple(range(network.world_size)), "generation", Priority.REDUCTION)
        self._tp = network.group(self.seat.groups["tp"], "generation", Priority.REDUCTION)

    @property
    def seat(self) -> Seat:
        """What this rank is in the plan."""
        return self.model.seat

    @property
    def plan(self) -> Plan:
        """The plan that the generation began with; live migrations change the map of its experts."""
        return self.seat.plan

    @property
    def rank(self) -> int:
        """Its number in the plan."""
        return self.seat.rank

    def receive(self, timeout_s: float) -> list[object]:
        """Return what the launcher has sent to this rank in this generation, after at most `timeout_s` without any.

        Raises GenerationEndedError.
        """
        self._process.beacon.pause()
        return self._process.received(self.number, timeout_s)

    def agree(self, numbers: Sequence[int]) -> list[list[int]]:
        """Return the `numbers` of every rank, [ranks][numbers], as many from each; all ranks call it before each step.

        Where every rank has the next map of a migration ready, all switch to it here. Raises GenerationEndedError or
        PeerLost.
        """
        self._process.check(self.number)
        self._process.beacon.step()
        self.num_steps += 1
        staged = 0 if self._mover is None else self._mover.staged
        row = torch.tensor([[staged, *numbers]], dtype=torch.int64)
        everyone = self._world.exchange_counts(row.expand(self._world.size, -1))
        if self._mover is not None and int(everyone[:, 0].min()):
            self._process.switched(self.number, self._mover.switch())
        return [integers(each) for each in everyone[:, 1:]]

    def own_time(self) -> tuple[float, float, float]:
        """Say that the step has ended; return the seconds that it took this rank without waits for peers.

        And those of them that experts and exchanges have no part in; and those in which it waited for transfers.
        """
        beacon = self._process.beacon
        beacon.pause()
        return beacon.own_s, beacon.alike_s, beacon.exposed_s

    def least_in_group(self, numbers: Sequence[int]) -> list[int]:
        """Return the least of each number over the ranks of this rank's tensor-parallel group, on all of them.

        Raises PeerLost.
        """
        row = torch.tensor([list(numbers)], dtype=torch.int64)
        return integers(self._tp.exchange_counts(row.expand(self._tp.size, -1)).amin(dim=0))

    def say(self, payload: object) -> None:
        """Tell the driver in the launcher something; it is refused there once the generation has ended.

        Raises GenerationEndedError.
        """
        self._process.check(self.number)
        self._process.say(self.number, payload)
