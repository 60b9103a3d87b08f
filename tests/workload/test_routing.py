"""Routing dumps: what is read from them, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moiety.errors import InputError
from moiety.workload.routing import Routing, read_routing

TOPK = np.array([[[0, 1], [0, 2]], [[3, 1], [3, 2]]])  # 2 layers, 2 tokens, top-2


def npz(**arrays: object) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **{key: np.asarray(value) for key, value in arrays.items()})
    return stream.getvalue()


def read(data: bytes, **model: int) -> Routing:
    return read_routing(data, source="r.npz", **model)


def refused(data: bytes, **model: int) -> str:
    with pytest.raises(InputError) as caught:
        read(data, **model)
    message = str(caught.value)
    assert message.startswith("r.npz")
    assert "\n" not in message
    return message


def as_json(**values: object) -> bytes:
    return json.dumps(values).encode()


@pytest.mark.parametrize("data", [npz(topk=TOPK, sequence=[7, 7]), as_json(topk=TOPK.tolist(), sequence=[7, 7])])
def test_topk_is_counted(data: bytes) -> None:
    routing = read(data)
    assert routing.counts.tolist() == [[[2, 1, 1, 0], [0, 1, 1, 2]]]
    assert (routing.num_windows, routing.num_layers, routing.num_experts) == (1, 2, 4)
    assert routing.topk is not None
    assert routing.topk.tolist() == TOPK.tolist()
    assert routing.sequence is not None
    assert routing.load_share().tolist() == [[0.5, 0.25, 0.25, 0], [0, 0.25, 0.25, 0.5]]


def test_known_model_has_experts_that_no_token_chose() -> None:
    assert read(npz(topk=TOPK), num_experts=6, num_layers=2).counts.shape == (1, 2, 6)


def test_windows_are_summed() -> None:
    routing = read(npz(counts=[[[1, 0], [0, 0]], [[1, 2], [0, 0]]]))
    assert routing.num_windows == 2
    assert routing.load_share().tolist() == [[0.5, 0.5], [0.5, 0.5]]  # nothing seen of layer 1: uniform
    assert read(npz(counts=[[1.0, 3.0]])).load_share().tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[]", "JSON object"),
        (b"{}", "holds no routing"),
        (b'{"counts": null}', "holds no routing"),
        (b'{"counts": [[1, NaN]]}', "finite"),
        (b'{"counts": [[1, -1]]}', "finite"),
        (b'{"counts": [[1, 1e300]]}', "finite"),
        (b'{"counts": [[0, 0]]}', "are all 0"),
        (b'{"counts": [[1, 2], [3]]}', "JSON"),
        (b'{"counts": [1, 2]}', "shape"),
        (b'{"counts": []}', "shape"),
        (b'{"counts": [[]]}', "shape"),
        (b'{"counts": [["a"]]}', "must hold numbers"),
        (b'{"counts": [[true]]}', "must hold numbers"),
        (b'{"counts": [[null]]}', "must hold numbers"),
        (b'{"counts": {"a": 1}}', "shape"),
        (b'{"topk": [[[0.5]]]}', "whole numbers"),
        (b'{"topk": [[[1e30]]]}', "whole numbers"),
        (b'{"topk": [[[' + b"9" * 30 + b"]]]}", "whole numbers"),
        (b'{"topk": [[[' + b"9" * 6000 + b"]]]}", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"topk": ' + b"[" * 70 + b"1" + b"]" * 70 + b"}", "JSON"),
        (npz(topk=[[[-1]]]), "holds expert -1"),
        (npz(topk=[[[2**31]]]), "at most 65536 experts"),
        (npz(topk=np.zeros((1, 0, 2), int)), "shape"),
        (npz(topk=np.zeros((1, 2, 3), int)), "more than there are"),
        (npz(topk=TOPK, counts=[[1.0, 1, 1, 1]]), "has 1 layers, topk has 2"),
        (npz(topk=TOPK, counts=[[1.0, 1], [1, 1]]), "names expert 3, counts has 2"),
        (npz(topk=TOPK, sequence=[1, 2, 3]), "topk has 2"),
        (npz(topk=TOPK, sequence=[0.5, 1]), "whole numbers"),
        (npz(counts=[[1, 2]], sequence=[1]), "there is no topk"),
        (npz(counts=np.array([[1 + 2j]])), "must hold numbers"),
        (npz(counts=np.array([["a"]])), "must hold numbers"),
        (npz(counts=np.full((1, 70_000), 1.0)), "at most 65536"),
        (npz(other=[1]), "holds no routing"),
        (npz(topk=TOPK)[:-30], ".npz"),
        (npz(topk=TOPK)[:60], ".npz"),
        (pickle.dumps({"logical_count": [1]}), "PyTorch"),
    ],
)
def test_what_is_no_routing_is_refused(data: bytes, said: str) -> None:
    assert said in refused(data)


def test_model_must_agree() -> None:
    assert "holds expert 3, numbered from 0; the model has 3 experts" in refused(npz(topk=TOPK), num_experts=3)
    assert "has 4 experts, the model 8" in refused(npz(counts=[[1, 1, 1, 1]]), num_experts=8)
    assert "has 2 layers, the model 3" in refused(npz(topk=TOPK), num_layers=3)


def test_pickles_are_never_run() -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (pytest.fail, ("the pickle was run",))

    stream = io.BytesIO()
    np.savez(stream, counts=np.array([[Trap()]], dtype=object))
    assert "pickle" in refused(stream.getvalue())


def test_torch_archive_names_the_way_out() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("dump/data.pkl", b"")
    assert "numpy.savez" in refused(stream.getvalue())


def test_single_array_names_the_way_out() -> None:
    stream = io.BytesIO()
    np.save(stream, TOPK)
    assert "numpy.savez" in refused(stream.getvalue())


def test_header_that_promises_too_much_is_refused() -> None:
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000, 8), }".ljust(117) + "\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("counts.npy", b"\x93NUMPY\x01\x00v\x00" + header.encode())
    assert "cannot be read as a .npz file" in refused(stream.getvalue())


@given(
    npst.arrays(
        st.sampled_from([np.int32, np.int64, np.float32, np.float64, np.uint16]),
        npst.array_shapes(min_dims=2, max_dims=3, max_side=5),
        elements={"min_value": 0, "max_value": 60_000},
    )
)
def test_shares_sum_to_one(counts: np.ndarray) -> None:
    if not counts.any():
        refused(npz(counts=counts))
        return
    routing = read(npz(counts=counts))
    share = routing.load_share()
    assert share.shape == counts.shape[-2:]
    assert share.sum(axis=1) == pytest.approx(1.0)
    assert (share >= 0).all()
    assert routing.counts.reshape(counts.shape) == pytest.approx(counts.astype(float))


@given(st.data())
def test_damaged_dump_is_read_or_refused(data: st.DataObject) -> None:
    dump = bytearray(npz(topk=TOPK, sequence=[1, 2]))
    for _ in range(data.draw(st.integers(1, 4))):
        dump[data.draw(st.integers(0, len(dump) - 1))] = data.draw(st.integers(0, 255))
    try:
        routing = read(bytes(dump))
    except InputError:
        return
    assert routing.load_share().sum(axis=1) == pytest.approx(1.0)


def test_planning_without_a_dump_needs_no_numpy() -> None:
    code = "import sys, moiety.workload.routing, moiety.workload.catalog as c; c.load_workload('chat')"
    check = f"{code}; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
