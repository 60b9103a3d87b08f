"""An interrupt ends verbs that execute, whatever they are at, and leaves no process behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

from tests.cli.test_run import children
from tests.runtime.launched import is_gone
from tests.serve.servers import NO_CERTIFICATES, ROOT, awaited, send

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("verb", ["run", "train", "serve"])
def test_an_interrupt_that_an_import_swallows_ends_the_command_all_the_same(
    verb: str, runnable_checkpoint: Path, runnable_folder: Path, work: Path
) -> None:
    (work / "d.jsonl").write_text('{"token_ids": [1, 2, 3]}\n')
    more = {"run": (), "train": ("--data", work / "d.jsonl", "--steps", "100000"), "serve": ("--port", "0")}[verb]
    command = [sys.executable, "-m", "tests.cli.swallowing", verb, runnable_folder, "--checkpoint", runnable_checkpoint]
    done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, check=False, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr


def test_an_interrupt_while_the_verbs_are_imported_ends_the_command_in_silence() -> None:
    command = [sys.executable, "-m", "tests.cli.early", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_server_that_is_ended_while_its_ranks_are_started_does_not_wait_for_them(
    runnable_checkpoint: Path, runnable_folder: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moiety", "serve", runnable_folder, "--checkpoint", runnable_checkpoint]

    def status() -> str | None:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health", verify=NO_CERTIFICATES).json()["status"]
        except httpx.TransportError:
            return None

    with subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        try:
            awaited(lambda: children(server.pid))
            (forks,) = children(server.pid)
            send(forks, signal.SIGSTOP)  # it will never be ready
            awaited(lambda: status() == "starting")
            server.send_signal(signal.SIGTERM)
            out, err = server.communicate(timeout=60)
        finally:
            server.kill()
    assert (server.returncode, out, err) == (0, b"", b"")
    assert is_gone(forks)
