"""The world of a rank: read from what `torchrun` and Slurm set, and the store where its ranks meet."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.runtime.world import NoStoreError, World, asked_port, listening, world_of


@given(data=st.data(), size=st.integers(1, 10_000), hosted=st.booleans())
def test_an_environment_is_read_back_as_it_is_written(data: st.DataObject, size: int, hosted: bool) -> None:
    local_size = data.draw(st.integers(1, size))
    world = World(
        rank=data.draw(st.integers(0, size - 1)),
        size=size,
        local_rank=data.draw(st.integers(0, local_size - 1)),
        local_size=local_size,
        address="node-3",
        port=data.draw(st.integers(1, 65_535)),
        is_hosted=hosted,
        restart=data.draw(st.integers(0, 9)),
    )
    assert world_of(world.environment()) == world


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"SLURM_PROCID": "0"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
        {"SLURM_JOB_ID": "77"},
    ],
)
def test_a_process_that_nobody_numbered_stands_alone(environ: dict[str, str]) -> None:
    assert world_of(environ) is None


def test_slurm_numbers_ranks_and_names_the_first_node() -> None:
    environ = {
        "SLURM_PROCID": "5",
        "SLURM_NTASKS": "16",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_JOB_NODELIST": "gpu[007-008],login",
        "SLURM_JOB_ID": "123456",
    }
    assert world_of(environ) == World(5, 8, 1, 4, "gpu007", 29_500 + 3456, is_hosted=False)
    named = world_of({**environ, "MASTER_ADDR": "head", "MASTER_PORT": "1234"})
    assert named is not None
    assert (named.address, named.port) == ("head", 1234)


@pytest.mark.parametrize("nodes", ["one", "one,two", "one,two[1-3]"])
def test_slurm_lists_of_nodes_without_numbers(nodes: str) -> None:
    world = world_of({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": nodes})
    assert world is not None
    assert world.address == "one"


@pytest.mark.parametrize(
    ("environ", "field"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "70000"}, "MASTER_PORT"),
        ({"SLURM_PROCID": "x", "SLURM_NTASKS": "4"}, "SLURM_PROCID"),
    ],
)
def test_numbers_that_cannot_be_are_refused(environ: dict[str, str], field: str) -> None:
    with pytest.raises(InputError) as caught:
        world_of(environ)
    assert caught.value.field == field


def test_any_port_is_asked_for_unless_one_is_named() -> None:
    assert asked_port({}) == 0
    assert asked_port({"MASTER_PORT": "4321"}) == 4321


def test_a_port_can_be_taken_once() -> None:
    with listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(NoStoreError, match="in use"):
            listening("127.0.0.1", port)
        with pytest.raises(NoStoreError, match="in use"):
            listening("", port)
    listening("127.0.0.1", port).close()


def test_ranks_meet_in_the_store_of_rank_0() -> None:
    pytest.importorskip("torch")
    with listening("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    first = World(0, 2, 0, 2, "127.0.0.1", port, is_hosted=False)
    host = first.join()
    guest = World(1, 2, 1, 2, "127.0.0.1", port, is_hosted=False).join()
    host.set("word", "given")
    assert guest.get("word") == b"given"
    again = World(1, 2, 1, 2, "127.0.0.1", port, is_hosted=False, restart=1).join()
    assert not again.check(["word"]), "ranks that are started again find nothing of the first attempt"


def test_nobody_at_the_store_is_said_in_time(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    with listening("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    with pytest.raises(NoStoreError, match=f"127.0.0.1:{port}': rank 1 found nobody there"):
        World(1, 2, 1, 2, "127.0.0.1", port, is_hosted=False).join(within_s=0.3)
    assert capfd.readouterr().err == "", "torch has not complained"


CALLER = """
import sys
from moiety.runtime import world
world._HANDSHAKE_S = 0.5
try:
    world.World(1, 2, 1, 2, "127.0.0.1", int(sys.argv[1]), is_hosted=False).join()
except world.NoStoreError as error:
    print(error)
"""


def test_who_listens_without_answering_is_not_waited_for() -> None:
    """In a process of its own, as a rank is: torch's call goes on until its end, and would complain where it is cut."""
    pytest.importorskip("torch")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        command = [sys.executable, "-c", CALLER, str(mute.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "does not answer as the store of a run" in done.stdout
