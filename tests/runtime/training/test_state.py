"""A training's state is read under any division bit by bit, and a save appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from moiety.errors import InputError, OutputError
from moiety.files import replacing_folder
from moiety.runtime.training.state import Entry, read_state
from tests.ranks import run_ranks
from tests.runtime.checkpoints import save_checkpoint
from tests.runtime.training.entry import Boxes, handed_on
from tests.runtime.training.test_equality import batches, divided

if TYPE_CHECKING:
    from pathlib import Path

DIVISIONS = (
    {"strategy": "tp2_dp2_ep2_etp2", "num_nodes": 2, "per_node": 2},
    {"strategy": "tp1_dp2_ep2", "per_node": 2},
    {"strategy": "tp1"},
    {"strategy": "tp1_dp4_ep4", "num_nodes": 2, "per_node": 2, "redundant": 4, "dense_parameter_sharding": True},
    {"strategy": "tp1_dp2_ep2_x2", "num_nodes": 2, "per_node": 2, "fully_sharded": True},
    {"strategy": "tp2_dp2_ep4", "num_nodes": 2, "per_node": 2},
)


def test_four_ranks_hand_on_to_two_to_one_and_to_four_bit_by_bit(tmp_path: Path) -> None:
    folder = save_checkpoint("deepseek_v3", tmp_path / "model")
    plans = [divided(folder, **division) for division in DIVISIONS]
    ranks = run_ranks(handed_on, 4, folder, plans, batches()[:2], timeout_s=120)
    alone = whole([ranks[0][2]])
    assert any(name.endswith("exp_avg") for name in alone)
    for number in range(len(plans)):
        held = whole([rank[number] for rank in ranks if rank[number] is not None])
        assert held.keys() == alone.keys()
        assert all((held[name] == alone[name]).all() for name in alone), number
    assert not list(tmp_path.glob(".state-*")), "nothing is left beside"


def whole(ranks: list[Boxes]) -> dict[str, np.ndarray]:
    """Return every tensor put together from the boxes of all ranks."""
    found: dict[str, np.ndarray] = {}
    for name, shape, offsets, values in (box for rank in ranks for box in rank):
        nothing = np.nan if values.dtype.kind == "f" else -1
        tensor = found.setdefault(name, np.full(shape, nothing, values.dtype))
        tensor[tuple(slice(low, low + size) for low, size in zip(offsets, values.shape, strict=True))] = values
    return found


def test_what_is_no_state_of_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no distributed checkpoint"):
        read_state([Entry("a", (2,), (0,), torch.zeros(2))], tmp_path)
    (tmp_path / ".metadata").write_bytes(b"not a pickle")
    with pytest.raises(InputError, match="is no distributed checkpoint"):
        read_state([Entry("a", (2,), (0,), torch.zeros(2))], tmp_path)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "state"
    for text in ("old", "new"):
        with replacing_folder(target) as fresh:
            (fresh / "file").write_text(text)
    with pytest.raises(KeyError), replacing_folder(target) as fresh:
        raise KeyError((fresh / "file").write_text("half"))
    assert [(path.name, path.read_text()) for path in target.iterdir()] == [("file", "new")]
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_folder_held_before_is_kept_beside_it(tmp_path: Path) -> None:
    target, kept = tmp_path / "state", tmp_path / "state.previous"

    def write(text: str) -> None:
        with replacing_folder(target, previous=kept) as fresh:
            (fresh / "file").write_text(text)
            if text == "half":
                raise OSError

    for text in ("first", "second", "third"):
        write(text)
    with pytest.raises(OutputError, match="nothing was changed"):
        write("half")
    assert {path.name: (path / "file").read_text() for path in tmp_path.iterdir()} == {
        "state": "third",
        "state.previous": "second",
    }
    shutil.rmtree(target)  # as a process that was killed between the two moves leaves it
    with pytest.raises(OutputError):
        write("half")
    assert {path.name: (path / "file").read_text() for path in tmp_path.iterdir()} == {"state.previous": "second"}
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, os.getppid()):  # a process that was killed in the midst of it, and one that is at it
        (tmp_path / f".state-{pid}-0123abcd.part").mkdir()
    write("fourth")
    assert (kept / "file").read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".state-{os.getppid()}-0123abcd.part",
        "state",
        "state.previous",
    ]
