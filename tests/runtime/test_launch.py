"""The launch: real processes that work, fail, die, hang and are interrupted; afterwards nothing of them is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")

from moiety.errors import InputError
from moiety.machine.readings import num_cores
from moiety.runtime.failure import RankFailedError
from moiety.runtime.launch import LOOPBACK, launch, rank_environment
from moiety.runtime.world import hosted_store, listening
from tests.runtime.imported_entries import THREAD_VARIABLE
from tests.runtime.launched import GONE_WITHIN_S, await_pids, check_nothing_is_left, job, parent_of, pids

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(scope="module", autouse=True)
def _first_store() -> None:
    """Let torch open what it keeps open for good."""
    hosted_store(listening(LOOPBACK, 0))


@pytest.fixture(autouse=True)
def _ranks_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let ranks import the functions of `entries`, and let no launch leave a descriptor open."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = open_descriptors()
    yield
    assert open_descriptors() <= before


def failed(entry: str, notes: Path, *, num_ranks: int = 2, seed: int = 1) -> str:
    """Return the one message of a job that fails, when everything of it is gone."""
    with pytest.raises(RankFailedError) as caught:
        launch(job(entry, notes, num_ranks=num_ranks, seed=seed))
    assert caught.value.exit_code == 2
    check_nothing_is_left(notes, num_ranks)
    return str(caught.value)


def test_every_rank_reports_and_leaves(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    logs = tmp_path / "logs"
    reports = launch(
        job("meet", tmp_path, num_ranks=2), output_folder=logs, progress=lambda done, total: seen.append((done, total))
    )
    assert [each["outputs"] for each in reports] == [[[0]], [[1]]]
    assert len({json.dumps(each["rank"]) for each in reports}) == 2
    assert set(seen) <= {(1, 2)}
    assert sorted(path.read_text() for path in logs.iterdir()) == ["a library warns\n"] * 2
    check_nothing_is_left(tmp_path, 2)


@pytest.mark.parametrize("leaves_a_thread", [False, True])
def test_what_ranks_need_is_imported_once_unless_they_could_not_be_forked_then(
    leaves_a_thread: bool, tmp_path: Path
) -> None:
    environ = {**os.environ, "OMP_NUM_THREADS": "2", **({THREAD_VARIABLE: "1"} if leaves_a_thread else {})}
    logs = tmp_path / "logs"
    reports = launch(job("meet", tmp_path, module="imported_entries"), output_folder=logs, environ=environ)
    ranks: list[Any] = [each["rank"] for each in reports]
    (server,) = {each["parent"] for each in ranks}
    assert server != os.getpid()
    assert [each["by"] for each in ranks] == [each["pid"] if leaves_a_thread else server for each in ranks]
    assert all(each["leads"] for each in ranks), "a keyboard's interrupt does not reach it"
    assert [path.read_text() for path in logs.iterdir()] == ["an import warns\na library warns\n"] * 2
    check_nothing_is_left(tmp_path, 2)


def test_a_report_may_be_larger_than_a_pipe(tmp_path: Path) -> None:
    (report,) = launch(job("big", tmp_path, num_ranks=1))
    assert report["outputs"] == [list(range(200_000))]


def test_ranks_share_the_cores_unless_told_otherwise() -> None:
    assert rank_environment({}, 1)["OMP_NUM_THREADS"] == str(num_cores())
    assert rank_environment({}, 10_000)["OMP_NUM_THREADS"] == "1"
    assert rank_environment({"OMP_NUM_THREADS": "3"}, 2)["OMP_NUM_THREADS"] == "3"


def test_wrong_input_speaks_before_those_who_lost_a_peer_by_it(tmp_path: Path) -> None:
    message = failed("refuse", tmp_path, num_ranks=4, seed=2)
    assert message == "model.safetensors: lm_head: must hold the tensor, says rank 2; fetch it again"


def test_a_killed_rank_is_named_not_those_who_noticed(tmp_path: Path) -> None:
    message = failed("kill", tmp_path)
    killed = (tmp_path / "1.pid").read_text()
    assert message.startswith(f"rank 1 (pid {killed}) was killed by SIGKILL")


def test_ranks_that_hang_and_ignore_the_polite_end_are_gone_soon(tmp_path: Path) -> None:
    begin_s = time.monotonic()
    message = failed("stumble", tmp_path)
    assert message.startswith("rank 1: KeyError: 'the map' (entries.py:")
    assert time.monotonic() - begin_s < 60, "they would hang for 300 s"


def test_last_words_are_shown_of_a_rank_that_left_without_any(tmp_path: Path) -> None:
    message = failed("vanish", tmp_path)
    assert "ended with exit code 7" in message
    assert message.endswith("terminate called | the stack was smashed")


def test_where_nobody_knows_the_cause_the_lowest_rank_speaks(tmp_path: Path) -> None:
    assert failed("lost", tmp_path) == "rank 0: group 'world': rank 1 was silent (after 300.0 s of waiting)"


def test_a_port_that_is_taken_is_said_before_any_rank_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(InputError) as caught:
            launch(job("meet", tmp_path), environ={**os.environ, "MASTER_PORT": port})
    assert str(caught.value).startswith(f"MASTER_PORT = {port}: the port is in use")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_no_rank_outlives_its_launcher(number: signal.Signals, code: int, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "temporary")}
    notes = tmp_path / "notes"
    for folder in (notes, tmp_path / "temporary"):
        folder.mkdir()
    command = [sys.executable, "-m", "tests.runtime.launched", "hang", str(notes)]
    launcher = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=tmp_path)
    try:
        await_pids(notes, 2)
        begin_s = time.monotonic()
        launcher.send_signal(number)
        assert launcher.wait(timeout=GONE_WITHIN_S) == code
        check_nothing_is_left(notes, 2)
        assert time.monotonic() - begin_s < GONE_WITHIN_S
    finally:
        launcher.kill()
        launcher.wait()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_ranks_end_with_the_process_that_they_are_forked_from(tmp_path: Path) -> None:
    def kill_when_all_are_there() -> None:
        os.kill(parent_of(await_pids(tmp_path, 2)[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill_when_all_are_there)
    killer.start()
    message = failed("hang", tmp_path)
    killer.join()
    assert message.startswith(f"rank 0 (pid {pids(tmp_path)[0]}) was killed by SIGKILL")
