"""Supply of crews: the ranks started, and started anew when one is lost."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from moiety.runtime.failure import Cause, RankFailedError
from moiety.runtime.launch import LOOPBACK, end_all, rank_environment
from moiety.runtime.rank_process import start
from moiety.runtime.serving.crew import Crew, Patience, RanksLostError
from moiety.runtime.world import World, asked_port, hosted_store, listening

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage] - torch's own way to export it

    from moiety.runtime.job import Job
    from moiety.runtime.rank_process import RankProcess
    from moiety.runtime.serving.restart_budget import RestartBudget


class CrewSupply(Protocol):
    """Where the server's crews come from.

    Every crew has a larger epoch than the one before, and nothing in its cache: sequences in flight are computed again
    from the server's journal. When `next` returns, no rank of the lost crew can do anything any more.
    """

    @property
    def current(self) -> Crew | None:
        """The crew at work, or the one that is being started."""
        ...

    async def first(self) -> Crew:
        """Return the first crew, ready to step; raise RankFailedError where it cannot be."""
        ...

    async def next(self, lost: RanksLostError) -> Crew:
        """Return a crew in place of the one that was lost; raise RankFailedError where there will be none."""
        ...


class RestartingSupply:
    """All ranks of a job on this machine; when one is lost all are ended and started anew, within a budget.

    A context: at its end every rank is gone. Raises NoStoreError where MASTER_PORT names a port that is taken.
    """

    def __init__(
        self,
        job: Job,
        budget: RestartBudget,
        *,
        patience: Patience | None = None,
        output_folder: Path | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.current: Crew | None = None
        self._job, self._budget, self._patience = job, budget, patience or Patience()
        self._output_folder = output_folder
        self._environment = rank_environment(environ, job.num_ranks)
        self._asked_port = asked_port(environ)
        self._store: Store | None = None
        self._stack = ExitStack()

    async def __aenter__(self) -> Self:
        self._listener = self._stack.enter_context(listening(LOOPBACK, self._asked_port))
        self._port = int(self._listener.getsockname()[1])
        self._job_file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with the stack
        self._stack.callback(self._job_file.close)
        self._job_file.write(self._job.model_dump_json().encode())
        self._job_file.flush()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.current is not None:
            await (self.current.leave() if error is None else self.current.end())
        self._stack.close()
        self._store = None

    async def first(self) -> Crew:
        """Return the first crew; raise RankFailedError where a rank fails: it would fail again."""
        try:
            return await self._started(0)
        except RanksLostError as lost:
            raise RankFailedError(lost.failure.message) from None

    async def next(self, lost: RanksLostError) -> Crew:
        """Return a crew of new processes, when every one of the lost crew's is gone.

        Raises RankFailedError where the budget is spent, or the cause will not go away by starting anew.
        """
        while True:
            assert self.current is not None, "a crew that was lost has been started"
            await self.current.end()
            if lost.failure.cause is Cause.INPUT:
                raise RankFailedError(lost.failure.message)
            if not self._budget.takes(time.monotonic()):
                raise RankFailedError(f"{lost.failure.message}; {self._budget.sentence}")
            try:
                return await self._started(self.current.epoch + 1)
            except RanksLostError as again:
                lost = again

    async def _started(self, epoch: int) -> Crew:
        """Return the crew of an epoch, ready to step."""
        size = self._job.num_ranks
        ranks: list[RankProcess] = []
        folder = self._output_folder
        if folder is not None and epoch > 0:
            folder = folder / f"epoch-{epoch}"
        try:
            for rank in range(size):
                world = World(rank, size, rank, size, LOOPBACK, self._port, is_hosted=True, restart=epoch)
                ranks.append(start(world, self._job_file.fileno(), self._environment, folder, takes_orders=True))
        except BaseException:
            end_all(ranks, politely=False)
            raise
        self.current = Crew(epoch, self._job.plan, ranks, self._patience)
        if self._store is None:  # torch is loaded while the ranks do the same; their calls wait in the queue
            self._store = await asyncio.to_thread(hosted_store, self._listener)
        await self.current.ready()
        return self.current
