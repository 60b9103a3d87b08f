"""The GPUs that ranks take are told by CUDA: numbered, hidden, reordered by the environment, known by their UUIDs."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.gpus.fake_gpus import FakeGpu, uuid

if TYPE_CHECKING:
    from tests.gpus.fake_gpus import FakeMachine

ASK = "from moiety.gpus.cuda_devices import cuda_uuids; print(*cuda_uuids())"


@pytest.mark.parametrize(
    ("environment", "indices"),
    [
        ({}, [2, 1, 0]),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, [0, 1, 2]),
        ({"CUDA_VISIBLE_DEVICES": "2,0"}, [0, 2]),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "2,0"}, [2, 0]),
        ({"CUDA_VISIBLE_DEVICES": f"{uuid(1)},{uuid(0)}"}, [1, 0]),
        ({"CUDA_VISIBLE_DEVICES": "1,9,0"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_gpus_are_known_by_their_uuids_in_the_order_of_cuda(
    machine: FakeMachine, environment: dict[str, str], indices: list[int]
) -> None:
    machine.set_gpus(FakeGpu(), FakeGpu(), FakeGpu())
    asked = subprocess.run(
        [sys.executable, "-c", ASK], env=machine.env(**environment), capture_output=True, check=True, text=True
    )
    assert asked.stdout.split() == [uuid(each) for each in indices]


def test_where_there_is_no_cuda_driver_it_is_said(machine: FakeMachine) -> None:
    alone = machine.env(LD_LIBRARY_PATH="")
    asked = subprocess.run([sys.executable, "-c", ASK], env=alone, capture_output=True, check=False, text=True)
    if not asked.returncode:
        pytest.skip("this machine has a driver of its own")
    assert "GpuError: CUDA: this machine has no libcuda.so.1" in asked.stderr
