"""Ranks that others start, by `torchrun` or with numbers in the environment: one voice, one exit code, nothing left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from moiety.errors import InputError
from moiety.runtime.attached import check_size
from moiety.runtime.world import World
from tests.runtime.launched import check_nothing_is_left

ROOT = Path(__file__).parents[2]
RANK = ("-m", "tests.runtime.attached_rank")


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def numbered(entry: str, notes: Path, *, size: int = 2, port: int | None = None) -> list[tuple[int, str, str]]:
    """Return (exit code, output, errors) of ranks that only the environment numbers, as Slurm's are."""
    port = port or free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, *RANK, entry, str(notes)],
            env=environment(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    ended = [(*rank.communicate(timeout=90), rank.returncode) for rank in ranks]
    return [(code, out, err) for out, err, code in ended]


def one_message(ended: list[tuple[int, str, str]]) -> str:
    """Return the only line that all ranks together wrote; they all leave with 2."""
    assert {code for code, _, _ in ended} == {2}, ended
    assert [out for _, out, _ in ended] == [""] * len(ended)
    (line,) = "".join(err for _, _, err in ended).splitlines()
    assert line.startswith("moiety: error: ")
    return line.removeprefix("moiety: error: ")


def test_torchrun_starts_the_ranks_and_rank_0_has_all_reports(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    done = subprocess.run(
        [*command, *RANK, "meet", str(tmp_path)],
        env=environment(),
        capture_output=True,
        check=False,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert [each["outputs"] for each in json.loads(done.stdout)] == [[[0]], [[1]]]
    check_nothing_is_left(tmp_path, 2)


def test_wrong_input_of_one_rank_is_said_once(tmp_path: Path) -> None:
    message = one_message(numbered("refuse", tmp_path))
    assert message == "model.safetensors: lm_head: must hold the tensor, says rank 1; fetch it again"
    check_nothing_is_left(tmp_path, 2)


def test_a_killed_rank_is_told_by_one_who_lost_it(tmp_path: Path) -> None:
    first, second = numbered("kill", tmp_path)
    assert second == (-9, "", "")
    assert one_message([first]).startswith("rank 0: group 'world': rank 1 is gone")


def test_another_number_of_ranks_than_the_plan_has_is_said_once(tmp_path: Path) -> None:
    message = one_message(numbered("meet", tmp_path, size=3))
    assert message == "WORLD_SIZE = 3: the plan takes 2 ranks, one a GPU; start 2 (torchrun --nproc-per-node 2)"


def test_rank_0_says_that_it_cannot_bind_and_nobody_waits_for_it(tmp_path: Path) -> None:
    begin_s = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
        message = one_message(numbered("meet", tmp_path, port=port))
    assert message.startswith(f"MASTER_PORT = {port}: the port is in use")
    assert time.monotonic() - begin_s < 60, "who waits for the store waits for 120 s"


@pytest.mark.parametrize(
    ("size", "local_size", "num_ranks", "remedy"),
    [
        (2, 2, 4, "start 4 (torchrun --nproc-per-node 4), or rehearse the plan on 2 with --fold 2"),
        (
            8,
            4,
            16,
            "start 16 (torchrun --nproc-per-node 8 on each of 2 machines), or rehearse the plan on 8 with --fold 8",
        ),
        (8, 4, 7, "start 7"),
        (4, 4, 2, "start 2 (torchrun --nproc-per-node 2)"),
    ],
)
def test_the_way_out_of_a_wrong_world_size(size: int, local_size: int, num_ranks: int, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        check_size(World(0, size, 0, local_size, "127.0.0.1", 1, is_hosted=True), num_ranks)
    assert caught.value.remedy == remedy


def test_the_right_world_size_passes() -> None:
    check_size(World(0, 4, 0, 4, "127.0.0.1", 1, is_hosted=True), 4)
