"""A slice is what the safetensors library gives for it; runs of bytes are read as such, and nothing around them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.runtime.checkpoint.header import read_header
from moiety.runtime.checkpoint.slice_reader import SliceReader, whole

if TYPE_CHECKING:
    from moiety.runtime.checkpoint.header import TensorEntry

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

PROCESS_COUNTERS = Path("/proc/self/io")
SHAPES = [(), (7,), (5, 6), (3, 4, 5), (2, 3, 1, 4), (0, 3)]


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, TensorEntry]]:
    """Return tensors of every readable format and several shapes, with their places in a file."""
    file = tmp_path_factory.mktemp("file") / "x.safetensors"
    formats = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8]
    values = {f"{each}{shape}": torch.randn(shape).mul(9).to(each) for each in formats for shape in SHAPES}
    save_file(values, file)
    return [(values[entry.name], entry) for entry in read_header(file)]


@given(data=st.data())
def test_any_box_is_the_tensors_slice(tensors: list[tuple[Any, TensorEntry]], data: st.DataObject) -> None:
    tensor, entry = data.draw(st.sampled_from(tensors))
    box = tuple(
        range(*sorted((data.draw(st.integers(0, size)), data.draw(st.integers(0, size))))) for size in entry.shape
    )
    reader = SliceReader()
    found = reader.read(entry, box)
    expected = tensor[tuple(slice(axis.start, axis.stop) for axis in box)]
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert bits(found) == bits(expected)
    assert reader.bytes_read == expected.numel() * expected.element_size()


@pytest.mark.skipif(not PROCESS_COUNTERS.exists(), reason="the system does not count what a process reads")
def test_a_run_of_rows_is_all_that_the_process_reads(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"w": torch.zeros(8, 1024, 256)}, file)
    (entry,) = read_header(file)
    reader = SliceReader()
    reader.read(entry, (range(3, 4), range(10, 20), range(256)))  # what the first read of all needs besides
    before = characters_read()
    reader.read(entry, (range(3, 4), range(100, 600), range(256)))
    assert 500 * 1024 <= characters_read() - before < 510 * 1024


@pytest.mark.parametrize("columns", [range(6), range(2, 4)])
def test_a_file_that_shrinks_after_it_was_opened_is_named(tmp_path: Path, columns: range) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"w": torch.zeros(5, 6)}, file)
    (entry,) = read_header(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError) as caught:
        SliceReader().read(entry, (range(5), columns))
    assert (caught.value.source, caught.value.field) == (str(file), "w")
    file.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        SliceReader().read(entry, whole(entry.shape))


@pytest.mark.parametrize("form", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named_where_they_are_read(tmp_path: Path, form: str, value: float) -> None:
    file = tmp_path / "x.safetensors"
    tensor = torch.ones(5, 6, dtype=getattr(torch, form))
    tensor[3, 2] = value
    save_file({"w": tensor}, file)
    (entry,) = read_header(file)
    for columns in (range(6), range(2, 4)):
        with pytest.raises(InputError, match="not finite") as caught:
            SliceReader().read(entry, (range(5), columns))
        assert (caught.value.source, caught.value.field) == (str(file), "w")
        assert bits(SliceReader().read(entry, (range(3), columns))) == bits(tensor[:3, columns.start : columns.stop])


def bits(tensor: Any) -> list[int]:  # noqa: ANN401 - torch is imported at run time
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def characters_read() -> int:
    counters = dict(line.split(": ") for line in PROCESS_COUNTERS.read_text().splitlines())
    return int(counters["rchar"])
