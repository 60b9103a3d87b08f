"""The group over a process group of PyTorch's keeps the laws of groups; here over gloo, where there are no GPUs."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tests.ranks import run_ranks
from tests.runtime.comm.torch_group_laws import collectives, library_group


def test_a_group_of_pytorchs_gives_what_ours_gives() -> None:
    run_ranks(collectives, 3)


def test_a_group_for_libraries_is_one_that_pytorch_knows() -> None:
    assert run_ranks(library_group, 3) == [3.0, 3.0, 3.0]
