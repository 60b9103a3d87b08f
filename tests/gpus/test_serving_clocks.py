"""`moiety serve --clocks`: real servers that set what is decided on GPUs of the tests' own library, and restore it."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import httpx
import pytest

pytest.importorskip("fastapi", reason="serving is an extra")

from tests.cli.command import moiety_process, refused
from tests.gpus.fake_gpus import FakeGpu, uuid
from tests.runtime.checkpoints import save_checkpoint
from tests.serve.servers import awaited, ended, planned, served, with_latency_limit

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gpus.fake_gpus import FakeMachine
    from tests.serve.servers import Server

HIGHEST, LOW = 1980, 990
"""In MHz: the device's, and the lowest that is weighed, as steps of a tiny model take no longer under it."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("qwen3_moe", tmp_path_factory.mktemp("checkpoint") / "qwen3")


@pytest.fixture(scope="module")
def plan(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a plan for GPUs, of which any request exceeds the time per token on the CPUs that rehearse it."""
    folder = planned(tmp_path_factory.mktemp("plan"), checkpoint, "h100x2", "tp1_dp2_ep2")
    return with_latency_limit(folder, 1e-6)


def locked(machine: FakeMachine) -> list[int]:
    return [gpu.locked_mhz for gpu in machine.gpus()]


def limit(server: Server) -> dict[str, object]:
    return httpx.get(f"{server.address}/health", timeout=60.0).json()["limit"]


def test_clocks_of_the_ranks_gpus_follow_the_load_and_are_restored_when_the_server_has_drained(
    machine: FakeMachine, plan: Path, checkpoint: Path
) -> None:
    machine.set_gpus(FakeGpu(), FakeGpu(), FakeGpu(), FakeGpu())
    journal = machine.state.with_name("limits.json")
    quick = ("--clocks", "--journal", str(journal), "--window", "0.25")
    ours = machine.env(CUDA_VISIBLE_DEVICES="3,1,0")  # CUDA counts backwards, and the third is one too many
    with served(plan, checkpoint, *quick, env=ours) as server:
        awaited(lambda: locked(machine) == [LOW, 0, LOW, 0])
        assert limit(server) == {"kind": "clock", "value_hz": LOW * 1e6, "is_set": True}
        assert journal.exists()
        beside = moiety_process("control", "restore", "--journal", journal, cwd=journal.parent, env=machine.env())
        assert "another run holds limits" in refused(beside)
        awaited(lambda: server.complete([3], 20) and locked(machine) == [HIGHEST, 0, HIGHEST, 0])
        assert server.metric("moiety_limits_set") == 1
        awaited(lambda: locked(machine) == [LOW, 0, LOW, 0])  # nobody waits for a token any more
        server.process.send_signal(signal.SIGTERM)
        code, errors = ended(server)
        assert code == 0, errors
    assert locked(machine) == [0, 0, 0, 0]
    assert not journal.exists()


def test_what_a_killed_server_has_set_is_restored_by_command(
    machine: FakeMachine, plan: Path, checkpoint: Path
) -> None:
    journal = machine.state.with_name("limits.json")
    with served(plan, checkpoint, "--clocks", "--journal", str(journal), env=machine.env()) as server:
        awaited(lambda: locked(machine) == [LOW, LOW])
        server.process.kill()
        ended(server)
    assert locked(machine) == [LOW, LOW], "nobody could have restored them"
    done = moiety_process("control", "restore", "--json", "--journal", journal, cwd=journal.parent, env=machine.env())
    assert [each["uuid"] for each in json.loads(done.out)["restored"]] == [uuid(1), uuid(0)]
    assert locked(machine) == [0, 0]


def test_a_driver_that_refuses_is_told_of_and_the_server_goes_on(
    machine: FakeMachine, plan: Path, checkpoint: Path
) -> None:
    journal = machine.state.with_name("limits.json")
    refusing = machine.env(FAKE_NVML_REFUSES="nvmlDeviceSetGpuLockedClocks:4")
    with served(plan, checkpoint, "--clocks", "--journal", str(journal), env=refusing) as server:
        assert len(server.complete([3], 4)) == 4
        found = limit(server)
    assert not found["is_set"]
    assert "takes root" in str(found["why_not"])
    assert not journal.exists()


def test_without_the_option_what_is_decided_is_shown_and_nothing_is_set(
    machine: FakeMachine, plan: Path, checkpoint: Path
) -> None:
    before = machine.gpus()
    with served(plan, checkpoint, env=machine.env()) as server:
        found = limit(server)
        assert server.metric("moiety_chosen_clock_hertz") == LOW * 1e6
        assert server.metric("moiety_limits_set") == 0
    assert found == {
        "kind": "clock",
        "value_hz": LOW * 1e6,
        "is_set": False,
        "why_not": "nothing is set without --clocks",
    }
    assert machine.gpus() == before


def test_where_clocks_cannot_be_set_the_server_does_not_start(
    machine: FakeMachine, plan: Path, checkpoint: Path, tmp_path: Path
) -> None:
    call = ("serve", plan, "--checkpoint", checkpoint, "--clocks", "--port", "0", "--journal", "limits.json")
    for_cpus = planned(tmp_path / "cpus", checkpoint, "local:2", "tp1_dp2_ep2")
    unused = [each for each in call if each != "--clocks"]
    assert "add --clocks" in refused(moiety_process(*unused, cwd=tmp_path, env=machine.env()))
    said = refused(moiety_process(*call[:1], for_cpus, *call[2:], cwd=tmp_path, env=machine.env()))
    assert "the plan is for CPUs" in said
    said = refused(moiety_process(*call, cwd=tmp_path, env=machine.env(FAKE_NVML_REFUSES="nvmlInitWithFlags:12")))
    assert "libnvidia-ml.so.1" in said
    said = refused(moiety_process(*call, cwd=tmp_path, env=machine.env(CUDA_VISIBLE_DEVICES="1")))
    assert "CUDA shows 1 GPU, and each of 2 ranks takes one" in said
    said = refused(moiety_process(*call, cwd=tmp_path, env=machine.env(FAKE_CUDA_MIG="1")))
    assert "is a part of a GPU" in said
    machine.set_gpus(FakeGpu(), FakeGpu(highest_mhz=900))
    assert refused(moiety_process(*call, cwd=tmp_path, env=machine.env())).startswith("GPU 1: clock = ")
    assert locked(machine) == [0, 0]
