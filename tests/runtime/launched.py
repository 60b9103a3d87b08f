"""Runs of small jobs, and what is left of them afterwards."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from moiety.cli.output import complain
from moiety.errors import MoietyError
from moiety.runtime.job import Job
from moiety.runtime.launch import launch
from tests.scenarios import plan_for, prefill_load, scenario, small_model

STRATEGIES = {1: "tp1", 2: "ep2_tp1", 4: "ep4_tp1"}
GONE_WITHIN_S = 10.0


def job(entry: str, notes: Path, *, num_ranks: int = 2, seed: int = 0, module: str = "entries") -> Job:
    """Return a job whose ranks call a function of a module here and leave their pids in the folder `notes`."""
    case = scenario(small_model(), f"h100x{num_ranks}", prefill_load())
    plan = plan_for(case, STRATEGIES[num_ranks])
    return Job(plan=plan, checkpoint=str(notes), seed=seed, entry=f"tests.runtime.{module}:{entry}")


def is_gone(pid: int) -> bool:
    """Return whether there is no such process, or only its corpse."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def parent_of(pid: int) -> int:
    """Return the pid of a process's parent."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.partition("PPid:")[2].split()[0])


def pids(notes: Path) -> list[int]:
    """Return the pids that the ranks have left, by rank."""
    found = sorted(notes.glob("*.pid"), key=lambda path: int(path.stem))
    return [int(path.read_text()) for path in found]


def await_pids(notes: Path, number: int, within_s: float = 60.0) -> list[int]:
    """Return the pids when so many ranks have left theirs."""
    deadline_s = time.monotonic() + within_s
    while len(found := [path for path in notes.glob("*.pid") if path.read_text()]) < number:
        assert time.monotonic() < deadline_s, f"only {len(found)} of {number} ranks came"
        time.sleep(0.02)
    return pids(notes)


def check_nothing_is_left(notes: Path, number: int) -> None:
    """Assert that every rank that there was is gone, and the port of their store free."""
    ranks = pids(notes)
    assert len(ranks) == number
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while not all(is_gone(pid) for pid in ranks):
        assert time.monotonic() < deadline_s, f"of {ranks} some are there"
        time.sleep(0.02)
    socket.create_server(("127.0.0.1", int((notes / "port").read_text()))).close()


if __name__ == "__main__":
    import torch.distributed  # noqa: F401 - so that how soon the launcher reacts is not how soon torch is loaded

    try:
        launch(job(sys.argv[1], Path(sys.argv[2]), seed=1))
    except MoietyError as error:
        complain(str(error))
        sys.exit(error.exit_code)
