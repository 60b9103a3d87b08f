"""A state's manifest: whatever happens to a byte of its files is found, and named."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.runtime.training.manifest import MANIFEST, Manifest, summed, whole_state
from moiety.runtime.training.states import newest_whole, previous_of

if TYPE_CHECKING:
    from pathlib import Path

FILES = {"a.distcp": {"w": b"twelve bytes", "v": b"", "x": b"and a few more"}, ".metadata": {".metadata": b"pickled"}}


def state(folder: Path, step: int = 3) -> Path:
    """Write a state that is whole."""
    folder.mkdir()
    for name, parts in FILES.items():
        (folder / name).write_bytes(b"".join(parts.values()))
    files = [
        summed(folder / name, [(key, len(value)) for key, value in parts.items()]) for name, parts in FILES.items()
    ]
    (folder / MANIFEST).write_text(Manifest.of(step, files).model_dump_json())
    return folder


def test_a_state_is_whole_as_it_was_written(tmp_path: Path) -> None:
    assert whole_state(state(tmp_path / "state")).step == 3


@given(st.data())
def test_a_flipped_bit_anywhere_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = state(tmp_path_factory.mktemp("flipped") / "state")
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    with pytest.raises(InputError, match=file.name):
        whole_state(folder)


@given(st.data())
def test_a_file_of_another_length_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = state(tmp_path_factory.mktemp("cut") / "state")
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = file.read_bytes()
    kept = data.draw(st.integers(0, len(content) - 1) | st.none())
    file.write_bytes(content + b"x" if kept is None else content[:kept])
    with pytest.raises(InputError, match=file.name):
        whole_state(folder)


def test_the_tensor_that_is_damaged_is_named(tmp_path: Path) -> None:
    folder = state(tmp_path / "state")
    (folder / "a.distcp").write_bytes(b"twelve bytes, and no more at all")
    with pytest.raises(InputError, match="has 32 bytes where 26 were written"):
        whole_state(folder)
    (folder / "a.distcp").write_bytes(b"twelve bytes")
    with pytest.raises(InputError, match=r"a\.distcp: x: is truncated: the file ends at byte 12 of 26"):
        whole_state(folder)
    (folder / "a.distcp").write_bytes(b"TWELVE BYTESand a few more")
    with pytest.raises(InputError, match=r"a\.distcp: w: is damaged"):
        whole_state(folder)


def test_the_state_before_is_taken_where_the_newest_is_not_whole(tmp_path: Path) -> None:
    newest = state(tmp_path / "state")
    before = state(previous_of(newest), step=2)
    assert newest_whole(newest).folder == newest
    assert newest_whole(newest).damage is None
    shutil.rmtree(newest)
    found = newest_whole(newest)
    assert found.folder == before
    assert found.damage is not None
    assert "of step 2" in found.damage
    (before / "a.distcp").unlink()
    with pytest.raises(InputError) as caught:
        newest_whole(newest)
    assert "there is no such folder" in str(caught.value)
    assert "a.distcp: cannot be read" in str(caught.value)
