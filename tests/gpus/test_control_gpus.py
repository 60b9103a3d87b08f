"""`moiety control gpus`, `power` and `restore` on GPUs of the tests' own library, in real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tests.cli.command import Done, moiety_process, refused
from tests.gpus.fake_gpus import FakeGpu, FakeMachine, uuid

if TYPE_CHECKING:
    from pathlib import Path

RESTORED = 650_000
"""The power limit that the fake GPUs begin with, in milliwatts."""


def control(machine: FakeMachine, *arguments: str | Path, **env: str) -> Done:
    return moiety_process("control", *arguments, cwd=machine.state.parent, env=machine.env(**env))


def started(machine: FakeMachine, *arguments: str | Path) -> subprocess.Popen[str]:
    """Return a process that holds limits: it has said that they are set."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moiety", "control", "power", *(str(each) for each in arguments)],
        cwd=machine.state.parent,
        env=machine.env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    patience = threading.Timer(120, process.kill)
    patience.start()
    said = process.stderr.readline()
    patience.cancel()
    assert "limits are set on 2 GPUs" in said
    return process


def locked(machine: FakeMachine) -> list[int]:
    return [gpu.locked_mhz for gpu in machine.gpus()]


def test_gpus_are_read(machine: FakeMachine) -> None:
    cool, hot = json.loads(control(machine, "gpus", "--json").out)["gpus"]
    assert cool == {
        "index": 0,
        "uuid": uuid(0),
        "name": "Fake H100",
        "power_w": 321.0,
        "sm_clock_hz": 1.98e9,
        "temperature_c": 61,
        "throttles": [],
        "is_hot": False,
        "memory_used_bytes": 60_000_000_000,
        "memory_bytes": 80_000_000_000,
        "busy_share": 0.75,
    }
    assert hot["throttles"] == ["power cap", "thermal (software)"]
    assert hot["is_hot"]


def test_what_a_gpu_does_not_offer_is_left_out_and_a_lost_one_ends_the_command(machine: FakeMachine) -> None:
    found = json.loads(control(machine, "gpus", "--json", FAKE_NVML_REFUSES="nvmlDeviceGetPowerUsage:3").out)
    assert found["gpus"][0]["power_w"] is None
    assert found["gpus"][0]["temperature_c"] == 61
    lost = control(machine, "gpus", FAKE_NVML_REFUSES="nvmlDeviceGetPowerUsage:15")
    assert refused(lost).startswith("GPU 0: nvmlDeviceGetPowerUsage: the GPU has fallen off the bus")


@pytest.mark.parametrize(
    ("code", "said"), [(9, "driver is not running"), (4, "refuses it"), (999, "the fake's own words|Unknown")]
)
def test_a_driver_that_does_not_start_says_why(machine: FakeMachine, code: int, said: str) -> None:
    message = refused(control(machine, "gpus", FAKE_NVML_REFUSES=f"nvmlInitWithFlags:{code}"))
    assert message.startswith("NVML: ")
    assert any(each in message for each in said.split("|"))


def test_nothing_is_set_without_apply(machine: FakeMachine, decode_plan: Path) -> None:
    before = machine.gpus()
    done = control(machine, "power", decode_plan, "--json", "--journal", "j/limits.json")
    document = json.loads(done.out)
    assert document["applied"] is False
    assert document["gpus"] == [0, 1]
    assert document["limit"]["kind"] == "clock"
    assert machine.gpus() == before
    assert not (machine.state.parent / "j").exists()


def test_limits_are_held_until_the_process_is_asked_to_end(machine: FakeMachine, decode_plan: Path) -> None:
    process = started(machine, decode_plan, "--apply", "--json", "--journal", "limits.json")
    journal = machine.state.parent / "limits.json"
    clock = locked(machine)[0]
    assert 990 <= clock < 1980
    assert locked(machine) == [clock, clock]
    assert journal.exists()
    beside = control(machine, "restore", "--journal", "limits.json")
    assert "another run holds limits" in refused(beside)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "limits are restored" in err
    document = json.loads(out)
    assert document["readings"][1]["sm_clock_hz"] == clock * 1e6
    assert locked(machine) == [0, 0]
    assert not journal.exists()


def test_what_a_killed_run_has_left_is_restored_by_the_next(machine: FakeMachine, decode_plan: Path) -> None:
    process = started(machine, decode_plan, "--apply", "--journal", "limits.json")
    process.kill()
    process.communicate(timeout=60)
    assert all(locked(machine)), "nobody could have restored them"
    dry = control(machine, "power", decode_plan, "--journal", "limits.json")
    assert "still set" in dry.err
    assert all(locked(machine))
    done = control(machine, "restore", "--json", "--journal", "limits.json")
    assert done.code == 0, done.err
    assert [each["uuid"] for each in json.loads(done.out)["restored"]] == [uuid(0), uuid(1)]
    assert locked(machine) == [0, 0]
    again = control(machine, "restore", "--json", "--journal", "limits.json")
    assert json.loads(again.out) == {"restored": []}


def test_a_run_killed_between_two_gpus_leaves_nothing_behind_after_the_next(
    machine: FakeMachine, decode_plan: Path
) -> None:
    call = ("power", decode_plan, "--apply", "--journal", "limits.json")
    assert control(machine, *call, FAKE_NVML_KILL_AFTER="1").code == -signal.SIGKILL
    assert [bool(each) for each in locked(machine)] == [True, False]
    assert control(machine, "restore", "--journal", "limits.json").code == 0
    assert locked(machine) == [0, 0]


def test_a_refusal_is_said_and_undone(machine: FakeMachine, decode_plan: Path) -> None:
    call = ("power", decode_plan, "--apply", "--journal", "limits.json")
    done = control(machine, *call, FAKE_NVML_REFUSES="nvmlDeviceSetGpuLockedClocks:4")
    assert "takes root" in refused(done)
    assert locked(machine) == [0, 0]
    assert not (machine.state.parent / "limits.json").exists()


def test_what_cannot_be_restored_stays_in_the_journal(machine: FakeMachine, decode_plan: Path) -> None:
    call = ("power", decode_plan, "--apply", "--journal", "limits.json")
    control(machine, *call, FAKE_NVML_KILL_AFTER="2")
    lost = control(
        machine, "restore", "--journal", "limits.json", FAKE_NVML_REFUSES="nvmlDeviceResetGpuLockedClocks:15"
    )
    message = refused(lost)
    assert uuid(0) in message
    assert uuid(1) in message
    assert "keeps them" in message
    assert control(machine, "restore", "--journal", "limits.json").code == 0
    assert locked(machine) == [0, 0]


def test_a_clock_that_a_gpu_does_not_have_is_refused_before_any_is_set(machine: FakeMachine, decode_plan: Path) -> None:
    machine.set_gpus(FakeGpu(), FakeGpu(highest_mhz=900))
    done = control(machine, "power", decode_plan, "--apply", "--journal", "limits.json")
    assert refused(done).startswith("GPU 1: clock = ")
    assert locked(machine) == [0, 0]


def test_a_journal_that_is_none_is_refused_with_the_way_out(machine: FakeMachine) -> None:
    (machine.state.parent / "limits.json").write_text('{"changed": [{"uuid": "GPU-0", "kind": "fan"}]}')
    message = refused(control(machine, "restore", "--journal", "limits.json"))
    assert "changed.0.kind" in message
    assert "nvidia-smi -rgc" in message


def test_a_journal_that_cannot_be_read_is_named_before_anything_is_printed(
    machine: FakeMachine, decode_plan: Path
) -> None:
    done = control(machine, "power", decode_plan, "--journal", ".")
    assert (done.code, done.out) == (2, "")
    assert "is a folder, not a file" in done.err
