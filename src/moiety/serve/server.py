"""The server: ranks and HTTP in one process, from the first rank's start to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn

from moiety.errors import InputError
from moiety.runtime.serving.ranks import Ranks
from moiety.runtime.serving.restart_budget import RestartBudget
from moiety.serve.app import app_of
from moiety.serve.clocks import Clocks, clocks_of_gpus
from moiety.serve.connection import Connection
from moiety.serve.controller import Controller
from moiety.serve.engine_loop import EngineLoop
from moiety.serve.looked_after import looked_after, policy_of
from moiety.serve.metrics import Metrics
from moiety.serve.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from moiety.calibration.calibration import Calibration
    from moiety.gpus.journal import Journal
    from moiety.runtime.job import Job
    from moiety.serve.intake import Served

_MAX_CONNECTIONS = 1024
_LAST_BYTES_S = 10
"""How long clients have to take the end of their answers when the server leaves."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server is told beside its job."""

    host: str
    port: int
    api_key: str | None
    max_waiting: int
    prefill_chunk: int
    max_restarts: int
    balance: bool
    """Whether experts move when the load drifts."""
    window_s: float
    """Between two counts of what the experts were asked for."""
    scale_nodes: int | None
    """Nodes that stay when little is asked for; None: all do."""
    limits: Journal | None
    """Where changed clocks and power caps of this machine's GPUs are noted; None: none is changed."""
    rank_output: Path | None


def serve(
    job: Job,
    calibration: Calibration,
    served: Served,
    settings: Settings,
    ready: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    """Serve until a signal asks for the end and the last answer is given; then GPUs' limits are as they were.

    `ready` gets the server's address when it takes requests, `note` a line for whoever looks after it. Raises
    InputError where the address cannot be had, RankFailedError where the ranks fail for good, and leaves with 128 plus
    the signal's number when a second one comes. `calibration` is what the job's plan is evaluated with.
    """
    least = settings.scale_nodes
    policy = policy_of(window_s=settings.window_s, balance=settings.balance, least_nodes=least)
    of = looked_after(job.plan, calibration, least_nodes=least)
    limits = settings.limits
    with (
        listening_on(settings.host, settings.port) as listener,
        nullcontext(Clocks(None, note)) if limits is None else clocks_of_gpus(of.deployment, limits, note) as clocks,
    ):
        controller = Controller(of, policy, clocks, note)
        asyncio.run(_serve(job, controller, served, settings, listener, ready, note))


@contextmanager
def listening_on(host: str, port: int) -> Generator[socket.socket]:
    """Give a socket bound to the address; raise InputError where it cannot be had."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        rule = f"cannot be listened on: {error.strerror or error}"
        raise InputError(rule, field="--host:--port", value=f"{host}:{port}", remedy="name another one") from None
    with listener:
        yield listener


class _Http(uvicorn.Server):
    """uvicorn without signals: the server itself decides when it is over."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals alone."""
        yield


async def _serve(
    job: Job,
    controller: Controller,
    served: Served,
    settings: Settings,
    listener: socket.socket,
    ready: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    assert job.serving is not None, "the job says how many sequences there is room for"
    metrics = Metrics()
    metrics.watch_limits(lambda: controller.clocks.is_set)
    scheduler = Scheduler(
        num_slots=job.serving.num_slots, prefill_chunk=settings.prefill_chunk, max_waiting=settings.max_waiting
    )
    budget = RestartBudget(settings.max_restarts)
    async with Ranks(job, budget, controller, output_folder=settings.rank_output) as ranks:
        engine = EngineLoop(ranks, scheduler, metrics, controller.users, note)
        http = _Http(
            uvicorn.Config(
                app_of(engine, controller, served, metrics, settings.api_key),
                http=Connection,
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                limit_concurrency=_MAX_CONNECTIONS,
                timeout_graceful_shutdown=_LAST_BYTES_S,
            )
        )
        answering = asyncio.create_task(http.serve(sockets=[listener]))
        stepping = asyncio.create_task(engine.run(lambda: ready(_address(listener))))
        signals = _Signals(engine, stepping, http, note)
        with signals.obeyed():
            done, _ = await asyncio.wait({answering, stepping}, return_when=asyncio.FIRST_COMPLETED)
            if answering in done:
                stepping.cancel()
            http.should_exit = True
            await answering
        if signals.has_insisted:
            raise SystemExit(128 + signals.last)
        with contextlib.suppress(asyncio.CancelledError):
            await stepping


class _Signals:
    """The first signal drains; a second one, or one before there is anything to drain, ends the server at once."""

    def __init__(
        self, engine: EngineLoop, stepping: asyncio.Task[None], http: uvicorn.Server, note: Callable[[str], None]
    ) -> None:
        self.last = 0
        self.has_insisted = False
        self._engine, self._stepping, self._http, self._note = engine, stepping, http, note

    @contextmanager
    def obeyed(self) -> Generator[None]:
        """Obey signals during the block."""
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` has it
            numbers.append(signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._hear, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _hear(self, number: signal.Signals) -> None:
        self.has_insisted = self.last != 0
        self.last = number
        if self.has_insisted or self._engine.state == "starting":
            self._http.force_exit = True
            self._stepping.cancel()
            return
        self._note(f"{number.name}: no new requests; what is in flight is finished (a second signal ends it)")
        self._engine.drain()


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
