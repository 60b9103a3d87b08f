"""Power caps through the journal, in a process that holds them by the library: what is put back is what there was."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.gpus.fake_gpus import FakeMachine

HOLD = """
from pathlib import Path
from moiety.gpus.journal import Journal
from moiety.gpus.limits import Limit, held
from moiety.gpus.nvml import open_gpus

with open_gpus() as gpus, held(gpus, [1], Limit("power", {watts}), Journal(Path("limits.json"))):
    print([gpus.power_range(index).now_w for index in range(2)])
    raise SystemExit("{end}")
"""


def test_a_cap_is_put_back_to_what_it_was_whatever_ends_the_block(machine: FakeMachine) -> None:
    program = HOLD.format(watts=500, end="ended by an error")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=machine.state.parent,
        env=machine.env(),
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.stdout == "[650.0, 500.0]\n", done.stderr
    assert done.stderr == "ended by an error\n"
    assert [gpu.limit_mw for gpu in machine.gpus()] == [650_000, 650_000]
    assert not (machine.state.parent / "limits.json").exists()


CHANGE = """
from pathlib import Path
from moiety.gpus.journal import Journal
from moiety.gpus.limits import Limit, holding
from moiety.gpus.nvml import GpuError, open_gpus

with open_gpus() as gpus, holding(gpus, [0, 1], Journal(Path("limits.json"))) as holder:
    for limit in (Limit("power", 500), Limit("power", 400), Limit("clock", 1.2e9)):
        try:
            holder.set(limit)
        except GpuError as error:
            print(error.code)
        print([gpus.power_range(index).now_w for index in range(2)])
"""


def test_a_limit_in_place_of_another_is_put_back_to_what_was_there_first_and_so_is_what_is_refused(
    machine: FakeMachine,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHANGE],
        cwd=machine.state.parent,
        env=machine.env(FAKE_NVML_REFUSES="nvmlDeviceSetGpuLockedClocks:4"),
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.stdout == "[500.0, 500.0]\n[400.0, 400.0]\nNO_PERMISSION\n[650.0, 650.0]\n", done.stderr
    assert [gpu.limit_mw for gpu in machine.gpus()] == [650_000, 650_000]
    assert not (machine.state.parent / "limits.json").exists()


def test_a_cap_beyond_what_the_gpu_takes_is_refused(machine: FakeMachine) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOLD.format(watts=900, end="")],
        cwd=machine.state.parent,
        env=machine.env(),
        capture_output=True,
        check=False,
        text=True,
    )
    assert "its power limit may be 200 to 700 W" in done.stderr
    assert [gpu.limit_mw for gpu in machine.gpus()] == [650_000, 650_000]
