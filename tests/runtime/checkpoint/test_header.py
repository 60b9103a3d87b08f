"""A header says where every tensor lies; a file that does not hold what it says is named, with the tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from moiety.errors import InputError
from moiety.runtime.checkpoint.header import read_header
from tests.runtime.checkpoint.safetensors_file import described, write_file

if TYPE_CHECKING:
    from pathlib import Path

save_file = pytest.importorskip("safetensors.torch").save_file
torch = pytest.importorskip("torch")


def test_entries_are_where_the_library_put_the_tensors(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.tensor(7, dtype=torch.bfloat16),
        "c": torch.zeros(0, 4, dtype=torch.float16),
        "d": torch.arange(5, dtype=torch.uint8),
    }
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    entries = {entry.name: entry for entry in read_header(file)}
    assert entries.keys() == tensors.keys()
    data = file.read_bytes()
    for name, tensor in tensors.items():
        entry = entries[name]
        assert (entry.shape, entry.size_bytes) == (tuple(tensor.shape), tensor.nbytes)
        raw = data[entry.offset : entry.offset + entry.size_bytes]
        assert raw == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("kept", [0, 7, 8, 40, -1])
def test_a_truncated_file_is_told_wherever_it_ends(tmp_path: Path, kept: int) -> None:
    file = write_file(tmp_path / "x.safetensors", {"w": described("F32", [4], 0, 16)}, bytes(16))
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match="is truncated") as caught:
        read_header(file)
    assert caught.value.source == str(file)
    assert caught.value.field == ("w" if kept == -1 else None)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{not json", "not valid JSON"),
        (b"[]", "must hold one JSON object"),
        (b"\xff\xfe", "not UTF-8"),
        ({"w": described("Q3", [1], 0, 4)}, "w = Q3: unsupported dtype"),
        ({"w": described("F32", [2], 0, 4)}, r"w: F32 of shape \[2\] takes 8 bytes, not 4"),
        ({"w": described("F32", [1], 4, 8)}, "w: is truncated"),
        ({"w": described("F32", [-1], 0, 4)}, "must give dtype, shape and data_offsets"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2, 4]}}, "must give dtype, shape and data_offsets"),
        ({"w": 3}, "must give dtype, shape and data_offsets"),
    ],
)
def test_a_header_that_describes_no_tensors_is_refused(
    tmp_path: Path, header: dict[str, object] | bytes, message: str
) -> None:
    file = write_file(tmp_path / "x.safetensors", header, bytes(4))
    with pytest.raises(InputError, match=message) as caught:
        read_header(file)
    assert caught.value.source == str(file)


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")
    with pytest.raises(InputError, match="git lfs pull"):
        read_header(file)
    file.write_bytes(b"\x80\x02}q\x00X\x04\x00\x00\x00")
    with pytest.raises(InputError, match="is not a safetensors file"):
        read_header(file)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_header(tmp_path / "absent.safetensors")
