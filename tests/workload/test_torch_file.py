"""PyTorch files read without PyTorch: the same numbers as `torch.load`, and nothing that could run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.errors import InputError
from moiety.workload.routing import read_routing
from moiety.workload.torch_file import read_torch_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMIT = 10**8


def saved(value: object, **options: int) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def read(data: bytes, limit: int = LIMIT) -> Any:  # noqa: ANN401 - a file holds anything
    return read_torch_file(data, source="dump.pt", max_bytes=limit)


def archive(pickled: bytes, **storages: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        made.writestr("dump/data.pkl", pickled)
        for key, content in storages.items():
            made.writestr(f"dump/data/{key.removeprefix('at')}", content)
    return stream.getvalue()


def refused(data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        read_routing(data, source="dump.pt")
    message = str(caught.value)
    assert message.startswith("dump.pt")
    assert "\n" not in message
    return message


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_usual_type_reads_as_torch_reads_it(dtype: torch.dtype) -> None:
    tensor = (torch.arange(24).reshape(2, 3, 4) * 2.75 - 20).to(dtype)
    found = read(saved({"a": tensor}))["a"]
    expected = tensor.float() if dtype == torch.bfloat16 else tensor
    assert found.dtype == expected.numpy().dtype
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.T,
        lambda t: t[2:, 1:5:2],
        lambda t: t[3],
        lambda t: t[0, 0],
        lambda t: t[:0],
        lambda t: t[:1].expand(4, 6),
        lambda t: t.to(torch.bfloat16)[1:, ::3].T,
        lambda t: t.reshape(2, 2, 6).permute(2, 0, 1),
    ],
)
def test_views_keep_their_offsets_and_strides(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensor = view(torch.arange(24, dtype=torch.float32).reshape(4, 6))
    found = read(saved([tensor]))[0]
    assert found.shape == tuple(tensor.shape)
    assert found.tolist() == tensor.tolist()


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(plain, st.sampled_from([2, 4]))
def test_plain_containers_come_back(value: object, protocol: int) -> None:
    tensor = torch.arange(3)
    found = read(saved({"plain": value, "twice": [tensor, tensor]}, pickle_protocol=protocol))
    assert found["plain"] == value
    assert [each.tolist() for each in found["twice"]] == [[0, 1, 2]] * 2


def test_an_ordered_dict_is_a_dict() -> None:
    assert read(saved(collections.OrderedDict(a=1))) == {"a": 1}


def test_big_endian_storages_are_turned() -> None:
    stream = io.BytesIO()
    tensor = torch.arange(5, dtype=torch.int32)
    with zipfile.ZipFile(io.BytesIO(saved(tensor))) as source, zipfile.ZipFile(stream, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("/byteorder"):
                content = b"big"
            if name.endswith("/data/0"):
                content = np.arange(5, dtype=">i4").tobytes()
            target.writestr(name, content)
    assert read(stream.getvalue()).tolist() == [0, 1, 2, 3, 4]


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_that_would_run_a_command_is_refused(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "ran"
    trap = Trap(target)
    message = refused(archive(pickle.dumps({"logical_count": trap}, protocol=protocol)))
    assert "system" in message
    assert "not followed" in message
    assert not target.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # protocol 0
        b"(S'true'\nios\nsystem\n.",  # by the instruction INST
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.",  # changes a known name's attributes
        b"\x80\x02\x82\x01.",  # a registered extension
        pickle.dumps(torch.nn.Linear(1, 1), protocol=2),
        pickle.dumps({1, 2}, protocol=2),
    ],
)
def test_names_and_instructions_that_tensors_do_not_need_are_refused(pickled: bytes) -> None:
    assert "not followed" in refused(archive(pickled))


def tensor_pickle(arguments: bytes) -> bytes:
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R."


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nIntStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (b"(" + STORAGE + b"K\x00K\x05\x85K\x01\x85t", "reaches number 4"),
        (b"(" + STORAGE + b"K\x04K\x01\x85K\x01\x85t", "reaches number 4"),
        (b"(" + STORAGE + b"K\x00K\x02\x85K\xff\x85t", "reaches number 255"),
        (b"(" + STORAGE + b"J\xff\xff\xff\xffK\x02\x85K\x01\x85t", "no shape"),
        (b"(" + STORAGE + b"K\x00J\xff\xff\xff\xff\x85K\x01\x85t", "no shape"),
        (b"(" + STORAGE + b"K\x00K\x02\x85K\x01K\x01\x86t", "1 dimensions and 2 strides"),
        (b"(" + STORAGE + b"K\x00J\x00\x00\x00\x70\x85K\x00\x85t", "at most"),
        (b"(" + STORAGE + b"K\x00K\x00J\x00\x00\x00\x70\x86K\x00K\x00\x86t", "at most"),
        (b"(K\x01K\x00K\x02\x85K\x01\x85t", "no shape"),
        (b"(t", "PyTorch file"),
        (b"(" + STORAGE.replace(b"K\x04t", b"K\x09t") + b"K\x00K\x02\x85K\x01\x85t", "holds 16 bytes"),
        (b"(" + STORAGE.replace(b"\x000X", b"\x007X") + b"K\x00K\x02\x85K\x01\x85t", "is missing"),
        (b"(" + STORAGE.replace(b"K\x04t", b"NNt") + b"K\x00K\x02\x85K\x01\x85t", "not one to a storage"),
    ],
)
def test_tensors_that_reach_outside_their_storage_are_refused(arguments: bytes, said: str) -> None:
    assert said in refused(archive(tensor_pickle(arguments), at0=bytes(16)))


def test_the_tensor_of_these_tests_reads() -> None:
    data = archive(tensor_pickle(b"(" + STORAGE + b"K\x01K\x03\x85K\x01\x85t"), at0=np.arange(4, dtype="<i4").tobytes())
    assert read(data).tolist() == [1, 2, 3]


def test_a_pickle_that_numbers_objects_beyond_its_size_is_refused() -> None:
    assert "numbers an object" in refused(archive(b"\x80\x02}r\xff\xff\xff\x7f."))


def test_the_old_format_names_the_way_out() -> None:
    old = saved({"logical_count": torch.ones(1, 2)}, _use_new_zipfile_serialization=False)
    assert "torch.save(torch.load(" in refused(old)


def test_a_file_larger_than_the_limit_is_refused() -> None:
    with pytest.raises(InputError, match="at most 1,000 are read"):
        read(saved(torch.zeros(1000)), limit=1000)


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject) -> None:
    whole = saved({"logical_count": torch.ones(2, 3, 4, dtype=torch.int32), "rank": 0})
    dump = bytearray(whole[: data.draw(st.integers(len(whole) // 4, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        dump[data.draw(st.integers(0, len(dump) - 1))] = data.draw(st.integers(0, 255))
    try:
        routing = read_routing(bytes(dump), source="dump.pt")
    except InputError:
        return
    assert routing.load_share().sum(axis=1) == pytest.approx(1.0)


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_pickle_is_read_or_refused(data: st.DataObject) -> None:
    with zipfile.ZipFile(io.BytesIO(saved({"logical_count": torch.ones(2, 3, dtype=torch.int32)}))) as made:
        pickled = bytearray(made.read("archive/data.pkl"))
        storage = made.read("archive/data/0")
    for _ in range(data.draw(st.integers(1, 4))):
        pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    try:
        routing = read_routing(archive(bytes(pickled), at0=storage), source="dump.pt")
    except InputError:
        return
    assert routing.load_share().sum(axis=1) == pytest.approx(1.0)
