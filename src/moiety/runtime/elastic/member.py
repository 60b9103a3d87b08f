"""Member: the process of a rank, from generation to generation."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, cast

from torch._C._distributed_c10d import PrefixStore

from moiety.runtime.checkpoint.index import Checkpoint
from moiety.runtime.comm.bulk import BulkQueue
from moiety.runtime.comm.network import Network
from moiety.runtime.comm.peer_lost import PeerLost
from moiety.runtime.comm.priority import Priority
from moiety.runtime.elastic.beacon import Beacon
from moiety.runtime.elastic.declaration import Batch, Declaration
from moiety.runtime.elastic.ended import GenerationEndedError
from moiety.runtime.elastic.generation import Generation
from moiety.runtime.elastic.handover import transfers_of
from moiety.runtime.elastic.holdings import Exchange, Holdings
from moiety.runtime.elastic.limits import BEAT_S
from moiety.runtime.elastic.lone_network import LoneNetwork
from moiety.runtime.elastic.migration import Mover
from moiety.runtime.generation import device_of
from moiety.runtime.model.load import load_model
from moiety.runtime.overlap import Turns
from moiety.runtime.seat import seat_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from moiety.runtime.channel import Message
    from moiety.runtime.elastic.handover import Holding
    from moiety.runtime.post import Post
    from moiety.runtime.seat import Seat

_LEAVE_S = 1.0
"""To leave in good order, where the launcher is silent."""
_TIMEOUT_S = 300.0
"""For which a peer may be silent; the launcher notices earlier, and says so."""


class Member:
    """A rank's process among those of a crew. One thread of the process uses it, and calls `serve`."""

    def __init__(self, post: Post) -> None:
        """Begin to listen to the launcher and to show signs of life."""
        assert post.channel is not None, "a crew has started this process"
        self.beacon = Beacon()
        self._post, self._channel = post, post.channel
        self._condition = threading.Condition()
        """Of all that the launcher's words change."""
        self._number, self._connect_s, self._orphan_s = -1, 0.0, 0.0
        self._heard_s: float | None = None
        """When the launcher has said last that it is there."""
        self._declared: Declaration | None = None
        self._wanted: Declaration | None = None
        """The generation that this process shall read its weights for, before it is declared."""
        self._is_over = False
        self._inbox: deque[tuple[int, object]] = deque()
        self._network: Network | None = None
        self._queue: BulkQueue | None = None
        self._mover: Mover | None = None
        self._checkpoint = Checkpoint.open(post.job.checkpoint)
        self._holdings = Holdings(device_of(post), self.beacon)
        self._cached_by: tuple[object, ...] = ()
        """What the KV cache depends on, in the generation that this process was in last."""
        for work in (self._listen, self._beat, self._mind_launcher):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def serve(self, body: Callable[[Generation], None]) -> None:
        """Call `body` in every generation that it is a rank of, until the crew is closed, or `body` returns."""
        entered = 0
        while (declaration := self._next(entered)) is not None:
            entered = declaration.generation
            rank = declaration.rank_of(self._number)
            if rank is None:
                continue
            try:
                with self._network_of(declaration, rank) as network:
                    body(self._begun(declaration, rank, network))
            except (GenerationEndedError, PeerLost) as error:
                self._tell_loss(entered, error)
            else:
                return

    # For its generations --------------------------------------------------------------------------------------------

    def check(self, generation: int) -> None:
        """Raise GenerationEndedError where that generation has ended."""
        if self._is_over or (self._declared is not None and self._declared.generation > generation):
            raise GenerationEndedError

    def received(self, generation: int, timeout_s: float) -> list[object]:
        """Return what the launcher has sent in a generation; see `Generation.receive`."""
        deadline_s = time.monotonic() + timeout_s
        with self._condition:
            while True:
                self.check(generation)
                found = [payload for sent_in, payload in self._inbox if sent_in == generation]
                left_s = deadline_s - time.monotonic()
                if found or left_s <= 0:
                    self._inbox.clear()
                    return found
                self._condition.wait(left_s)

    def say(self, generation: int, payload: object) -> None:
        """Tell the launcher what the driver's other half says."""
        self._channel.say({"say": {"generation": generation, "payload": payload}})

    def switched(self, generation: int, batch: int) -> None:
        """Tell the launcher that a batch of moves is in force."""
        self._channel.say({"switched": {"generation": generation, "batch": batch}})

    # From one to the next -------------------------------------------------------------------------------------------

    def _next(self, entered: int) -> Declaration | None:
        """Return the newest generation after `entered`, once there is one; None when the crew is closed."""
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._is_over or self._wanted or self._is_declared_after(entered))
                wanted, self._wanted = self._wanted, None
                if self._is_over:
                    return None
                if wanted is None:
                    return self._declared
            self._prepare(wanted)

    def _is_declared_after(self, generation: int) -> bool:
        return self._declared is not None and self._declared.generation > generation

    def _prepare(self, wanted: Declaration) -> None:
        """Read what this process needs in a generation, while the others step in the one before."""
        rank = wanted.rank_of(self._number)
        if rank is not None:
            seat = seat_of(wanted.plan, rank)
            network = LoneNetwork(
                rank=rank,
                world_size=wanted.plan.num_gpus,
                store=PrefixStore(f"member {self._number}", self._post.store),
                tiers=wanted.plan.cluster.tiers,
                device=self._holdings.device,
            )
            self.beacon.mark("prepare")
            load_model(seat, self._checkpoint, network, recorder=self.beacon, supply=self._holdings)
            self._holdings.settle(seat.layers)
            network.close()
        self._channel.say({"prepared": {"generation": wanted.generation}})

    @contextmanager
    def _network_of(self, declaration: Declaration, rank: int) -> Generator[Network]:
        """Meet the other ranks of a generation, for as long as the block lasts; PeerLost where one does not come."""
        network = Network(
            rank=rank,
            world_size=len(declaration.members),
            store=self._post.store,
            tiers=declaration.plan.cluster.tiers,
            device=self._holdings.device,
            timeout_s=_TIMEOUT_S,
            connect_s=self._connect_s,
            generation=declaration.generation,
            observer=self.beacon,
            transport=self._post.job.transport,
        )
        with self._condition:
            self._network = network
        try:
            self.check(declaration.generation)  # from here on, whoever declares the next aborts this one
            self.beacon.enter(declaration.generation, network.watch)
            network.group(tuple(range(network.world_size)), "generation", Priority.REDUCTION).barrier()
            yield network
        finally:
            with self._condition:
                self._network, mover, self._mover = None, self._mover, None
            network.abort("the generation has ended")
            if mover is not None:
                mover.close()
            if self._queue is not None:
                self._queue.close()
                self._queue = None
            network.close()

    def _begun(self, declaration: Declaration, rank: int, network: Network) -> Generation:
        """Return the generation when every rank has its weights and its groups."""
        seat = seat_of(declaration.plan, rank)
        world = network.group(tuple(range(network.world_size)), "generation", Priority.REDUCTION)
        holdings = cast("list[Holding]", world.gather_objects(self._holdings.holding()))
        self._queue = BulkQueue(network)
        bulk = self._queue.group(world.ranks, "experts", Priority.MIGRATION)
        self._holdings.exchange = Exchange(rank, bulk, transfers_of(declaration.plan, holdings))
        turns = Turns()
        model = load_model(seat, self._checkpoint, network, turns=turns, recorder=self.beacon, supply=self._holdings)
        self._holdings.settle(seat.layers)
        if model.expert_layers:
            self._mover = Mover(model, self._holdings, bulk)
        cached_by = _cached_by(declaration, seat)
        keeps_cache = cached_by == self._cached_by
        generation = Generation(
            self, declaration.generation, network, model, turns, self._mover, keeps_cache=keeps_cache
        )
        world.barrier()
        self._cached_by = cached_by
        self._channel.say({"ready": {"generation": declaration.generation, "kept": keeps_cache}})
        return generation

    def _tell_loss(self, generation: int, error: GenerationEndedError | PeerLost) -> None:
        """Tell the launcher that a generation cannot go on, unless it has said so itself."""
        with self._condition:
            is_known = self._is_over or self._is_declared_after(generation)
        if isinstance(error, PeerLost) and not is_known:
            self._channel.say({"lost": {"generation": generation, "rank": error.rank, "message": str(error)}})

    # The other threads ----------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        for message in self._channel.heard():
            with self._condition:
                self._take(message)
                self._condition.notify_all()
        with self._condition:
            self._end("the launcher is gone")

    def _take(self, message: Message) -> None:
        for kind, said in message.items():
            if kind == "welcome":
                welcome = cast("dict[str, float]", said)
                self._number, self._connect_s = int(welcome["member"]), welcome["connect_s"]
                self._orphan_s = welcome["orphan_s"]
            elif kind == "here":
                self._heard_s = time.monotonic()
            elif kind == "prepare":
                self._wanted = Declaration.model_validate(said)
            elif kind == "declare":
                self._declared = Declaration.model_validate(said)
                self._abort(f"generation {self._declared.generation} begins")
            elif kind == "say":
                sent = cast("dict[str, object]", said)
                self._inbox.append((cast("int", sent["generation"]), sent["payload"]))
            elif kind == "move":
                batch = Batch.model_validate(said)
                if self._mover is not None and self.beacon.generation == batch.generation:
                    self._mover.take(batch)
            elif kind == "end":
                self._end("the crew is closed")

    def _mind_launcher(self) -> None:
        """End this process when the launcher is silent: it may have given it up, and others go on elsewhere."""
        while self._heard_s is None or time.monotonic() - self._heard_s < self._orphan_s:
            time.sleep(BEAT_S)
        with self._condition:
            self._end("the launcher is silent")
        time.sleep(_LEAVE_S)
        os._exit(1)  # whatever its threads still wait for

    def _end(self, reason: str) -> None:
        self._is_over = True
        self._abort(reason)
        self._condition.notify_all()

    def _abort(self, reason: str) -> None:
        if self._network is not None:
            self._network.abort(reason)

    def _beat(self) -> None:
        with suppress(OSError):  # the launcher is gone, or has given this process up: `_listen` hears of it too
            while not self._is_over:
                self._channel.say({"beat": self.beacon.beat().model_dump(mode="json")})
                time.sleep(BEAT_S)


def _cached_by(declaration: Declaration, seat: Seat) -> tuple[object, ...]:
    """Return what the contents of this rank's KV cache depend on: who shares its attention, and what is divided how."""
    group = tuple(declaration.members[rank] for rank in seat.groups["tp"])
    pipeline = tuple(declaration.members[rank] for rank in seat.groups["pp"])
    return group, pipeline, seat.coordinates["tp"], (seat.layers.start, seat.layers.stop)
