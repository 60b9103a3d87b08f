"""One rank among those that `torchrun` or Slurm started: the reports of all, and one voice for errors."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from moiety.errors import InputError
from moiety.runtime.failure import Cause, RankFailedError, failure_of
from moiety.runtime.job import Job
from moiety.runtime.parcel import parcel, send_parcel
from moiety.runtime.post import Post, work
from moiety.runtime.world import STORE_TIMEOUT_S, NoStoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage] - torch's own way to export it

    from moiety.runtime.post import Report
    from moiety.runtime.world import World

_JOB, _CLAIM, _SAID, _LEFT = "job", "claim", "said", "left"
_JOIN_TO_COMPLAIN_S = 10.0
_PATIENCE_S = 2.0
"""How long a rank that lost a peer leaves the word to the cause, and a rank without the word waits until it is said."""
_HOST_PATIENCE_S = 3.0
"""How long a rank that hosts the store stays for the others to ask who speaks."""
_PERIOD_S = 0.02


def check_size(world: World, num_ranks: int) -> None:
    """Raise InputError where the plan takes another number of ranks than were started."""
    if world.size == num_ranks:
        return
    machines = max(world.size // world.local_size, 1)
    start = f"start {num_ranks}"
    if num_ranks % machines == 0:
        start += f" (torchrun --nproc-per-node {num_ranks // machines}"
        start += f" on each of {machines} machines)" if machines > 1 else ")"
    fold = f", or rehearse the plan on {world.size} with --fold {world.size}" if world.size < num_ranks else ""
    rule = f"the plan takes {num_ranks} ranks, one a GPU"
    raise InputError(rule, field="WORLD_SIZE", value=world.size, remedy=start + fold)


class SomeoneFailedError(Exception):
    """Another rank failed; it says why."""


@dataclass(slots=True)
class Attached:
    """One rank of a world that others started; it meets them in the store when it first needs to."""

    world: World
    _store: list[Store] = field(default_factory=list["Store"])

    @property
    def speaks(self) -> bool:
        """Whether this rank prints the results."""
        return self.world.rank == 0

    def shared(self, prepare: Callable[[], Job]) -> Job:
        """Return the job that rank 0 prepares, on every rank: what it reads and measures is the same for all."""
        if self.speaks:
            job = prepare()
            send_parcel(self._joined(None), _JOB, job.model_dump_json())
            return job
        store = self._joined(None)
        _await_key(store, _JOB, "rank 0 has not said what is to be done")
        return Job.model_validate_json(parcel(store, _JOB))

    def run(self, job: Job, progress: Callable[[int, int], None] | None = None) -> tuple[Report, ...]:
        """Do this rank's part of the job; return the reports of all ranks on rank 0, nothing on the others."""
        store = self._joined(None)
        report = work(Post(job, self.world, progress or _unseen, _joined=[store]))
        send_parcel(store, f"report/{self.world.rank}", json.dumps(report, allow_nan=False))
        if not self.speaks:
            return ()
        for rank in range(self.world.size):
            _await_key(store, f"report/{rank}", f"rank {rank} has not reported")
        return tuple(cast("Report", json.loads(parcel(store, f"report/{rank}"))) for rank in range(self.world.size))

    def complain(self, error: Exception, say: Callable[[str], None]) -> None:
        """Have an error said once among all ranks, by the first that knows the cause; return when it is said.

        Without a store the first rank of each machine speaks.
        """
        failure = failure_of(self.world.rank, error)
        store = None if isinstance(error, NoStoreError) else self._joined_to_complain()
        if store is None:
            if self.world.local_rank == 0:
                say(failure.message)
            return
        try:
            if failure.cause is Cause.CONSEQUENCE or isinstance(error, SomeoneFailedError):
                _wait_for(store, _CLAIM, _PATIENCE_S)
            if store.add(_CLAIM, 1) == 1:
                say(failure.message)
                store.set(_SAID, "1")
            else:
                _wait_for(store, _SAID, _PATIENCE_S)
            self._take_leave(store)
        except RuntimeError:  # the store's host is gone, and with it whoever spoke
            if failure.cause is Cause.INPUT:
                say(failure.message)

    def _joined(self, within_s: float | None) -> Store:
        if not self._store:
            self._store.append(self.world.join() if within_s is None else self.world.join(within_s=within_s))
        return self._store[0]

    def _joined_to_complain(self) -> Store | None:
        try:
            return self._joined(_JOIN_TO_COMPLAIN_S)
        except NoStoreError:
            return None

    def _take_leave(self, store: Store) -> None:
        """Count this rank out; the one that hosts the store leaves last, so that the others can still ask it."""
        left = store.add(_LEFT, 1)
        deadline_s = time.monotonic() + _HOST_PATIENCE_S
        while self.world.hosts_store and left < self.world.size and time.monotonic() < deadline_s:
            time.sleep(_PERIOD_S)
            left = store.add(_LEFT, 0)


def _await_key(store: Store, key: str, what: str) -> None:
    """Wait for a key; raise SomeoneFailedError where a rank has claimed the word, RankFailedError when time is up."""
    deadline_s = time.monotonic() + STORE_TIMEOUT_S
    while not store.check([key]):
        if store.check([_CLAIM]):
            raise SomeoneFailedError
        if time.monotonic() > deadline_s:
            raise RankFailedError(f"{what} for {STORE_TIMEOUT_S:.0f} s")
        time.sleep(_PERIOD_S)


def _wait_for(store: Store, key: str, within_s: float) -> None:
    deadline_s = time.monotonic() + within_s
    while not store.check([key]) and time.monotonic() < deadline_s:
        time.sleep(_PERIOD_S)


def _unseen(_done: int, _total: int) -> None:
    """Take note of progress that nobody watches."""
