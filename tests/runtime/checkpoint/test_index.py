"""A folder is a checkpoint when its config, index and files agree; otherwise the file and the tensor are named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from moiety.errors import InputError
from moiety.runtime.checkpoint.index import Checkpoint
from tests.runtime.checkpoint.models import tiny_model
from tests.runtime.checkpoint.safetensors_file import described, write_file, write_index

if TYPE_CHECKING:
    from pathlib import Path

safe_open = pytest.importorskip("safetensors").safe_open

WORD = {"w": described("F32", [1], 0, 4)}
OTHER = {"v": described("F32", [1], 0, 4)}


def test_a_folder_lists_what_the_library_finds_in_its_files(tmp_path: Path) -> None:
    tiny_model("deepseek_v3").save_pretrained(tmp_path, max_shard_size="100KB")
    checkpoint = Checkpoint.open(tmp_path)
    found: dict[str, tuple[str, str, list[int]]] = {}
    for file in tmp_path.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            found |= {name: (file.name, each.get_dtype(), each.get_shape()) for name, each in slices.items()}
    listed = {name: (each.file.name, each.dtype, list(each.shape)) for name, each in checkpoint.tensors.items()}
    assert listed == found
    assert list(listed) == sorted(listed)
    assert checkpoint.config["model_type"] == "deepseek_v3"


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    size = 1 << 40  # a file with a hole: no memory and no disk would hold its data
    file = write_file(tmp_path / "model.safetensors", {"w": described("U8", [size], 0, size)})
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size + size)
    assert Checkpoint.open(str(tmp_path)).tensors["w"].size_bytes == size


def test_the_whole_file_comes_before_an_index(tmp_path: Path) -> None:
    write_index(tmp_path, {"v": "absent.safetensors"})
    write_file(tmp_path / "model.safetensors", WORD, bytes(4))
    assert list(Checkpoint.open(tmp_path).tensors) == ["w"]


def test_a_folder_without_weights_says_what_it_holds_instead(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder") as caught:
        Checkpoint.open(tmp_path / "absent")
    assert caught.value.source == str(tmp_path / "absent")
    with pytest.raises(InputError, match=r"holds no config\.json"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="is a file, not a folder"):
        Checkpoint.open(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"holds no model\.safetensors and no model\.safetensors\.index\.json"):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"pytorch_model-00001-of-00002\.bin, which are pickled.*save_pretrained"):
        Checkpoint.open(tmp_path)
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds consolidated\.safetensors, but neither"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: line 1"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"w": 3}, {"w": ""}])
def test_an_index_maps_tensors_to_files(tmp_path: Path, weight_map: object) -> None:
    write_index(tmp_path, weight_map)
    with pytest.raises(InputError, match=r"must map each tensor|must be the name of a file") as caught:
        Checkpoint.open(tmp_path)
    assert str(caught.value.source).endswith("index.json")


def test_a_missing_shard_is_named_with_a_tensor_that_needs_it(tmp_path: Path) -> None:
    write_index(tmp_path, {"w": "a.safetensors", "v": "b.safetensors"})
    write_file(tmp_path / "a.safetensors", WORD, bytes(4))
    with pytest.raises(InputError, match=r"the file is missing; .* says that it holds v") as caught:
        Checkpoint.open(tmp_path)
    assert caught.value.source == str(tmp_path / "b.safetensors")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_tensor_that_its_shard_does_not_hold_is_named(tmp_path: Path, *, elsewhere: bool) -> None:
    write_index(tmp_path, {"v": "a.safetensors", "w": "b.safetensors"})
    write_file(tmp_path / "a.safetensors", {}, bytes(4))
    write_file(tmp_path / "b.safetensors", WORD | (OTHER if elsewhere else {}), bytes(4))
    with pytest.raises(InputError, match="says that the file holds the tensor; it does not") as caught:
        Checkpoint.open(tmp_path)
    assert (caught.value.source, caught.value.field) == (str(tmp_path / "a.safetensors"), "v")


def test_a_tensor_in_two_files_is_named_with_both(tmp_path: Path) -> None:
    write_index(tmp_path, {"w": "a.safetensors", "v": "b.safetensors"})
    write_file(tmp_path / "a.safetensors", WORD, bytes(4))
    write_file(tmp_path / "b.safetensors", WORD | OTHER, bytes(4))
    with pytest.raises(InputError, match=r"the tensor lies in a\.safetensors as well") as caught:
        Checkpoint.open(tmp_path)
    assert (caught.value.source, caught.value.field) == (str(tmp_path / "b.safetensors"), "w")
