"""Saved states of a training: the newest is cut short, a bit of it flipped, or the disk is full when one is written.

Files of other verbs on a full disk are in `tests/test_files.py`.
"""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")

from moiety.runtime.training.manifest import whole_state
from tests.chaos.cluster import planned, rows_file
from tests.cli.command import Done, moiety
from tests.small_disk import small_disk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.recoveries import Recover


def cut(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)


def flip(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 0x10]))


DAMAGES: dict[str, Callable[[Path], None]] = {"truncated": cut, "bit-flipped": flip}


@pytest.fixture(scope="module")
def train(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    folder = tmp_path_factory.mktemp("training")
    plan, rows = planned(folder / "plan", checkpoint, num_ranks=1), rows_file(folder / "rows.jsonl")

    def call(*arguments: str | Path) -> Done:
        return moiety("train", plan, "--checkpoint", checkpoint, "--data", rows, "--steps", "1", "--json", *arguments)

    return call


def boxes(folder: Path) -> dict[str, list[str]]:
    """Return the digest of every tensor's bytes; `.metadata` has an id of its own in each save."""
    files = whole_state(folder).files
    return {each.name: [part.sha256 for part in each.parts] for each in files if each.name != ".metadata"}


def loss(done: Done) -> list[float]:
    assert done.code == 0, done.err
    document: dict[str, Any] = json.loads(done.out)
    return document["losses"]


def test_a_damaged_newest_state_is_found_and_the_one_before_goes_on_bit_by_bit(
    train: Callable[..., Done], tmp_path: Path, recover: Recover
) -> None:
    state, before = tmp_path / "state", tmp_path / "state.previous"
    loss(train("--save", state))
    second = loss(train("--resume", state, "--save", state))
    expected = boxes(state)
    for name, damage in DAMAGES.items():
        file = state / "__0_0.distcp"
        damage(file)
        began_s = time.monotonic()
        again = train("--resume", state, "--save", state)
        recover(f"newest state {name}", time.monotonic() - began_s, bar_s=None)
        (message,) = again.err.splitlines()
        assert str(file) in message
        assert f"going on from the state before it, {before} of step 1" in message
        assert loss(again) == second
        assert boxes(state) == expected, "bit by bit"
        assert whole_state(before).step == 1, "the damaged one is not kept in place of the good one"
    check_full_disk(train, state, tmp_path / "disk")
    shutil.rmtree(state)
    cut(before / "__0_0.distcp")
    refused = train("--resume", state)
    assert (refused.code, refused.out, len(refused.err.splitlines())) == (2, "", 1)
    assert "no such folder" in refused.err
    assert "nor is the state before it whole" in refused.err


def check_full_disk(train: Callable[..., Done], whole: Path, folder: Path) -> None:
    """Assert that a state which finds no room is one message, and what was there before is there."""
    with small_disk(folder, "6m") as disk:
        state = disk / "state"
        shutil.copytree(whole, state)
        failed = train("--resume", state, "--save", state)
        assert (failed.code, failed.out, len(failed.err.splitlines())) == (2, "", 1)
        assert f"{state}: cannot be written: No space left on device; nothing was changed" in failed.err
        assert list(disk.iterdir()) == [state]
        assert boxes(state) == boxes(whole)
