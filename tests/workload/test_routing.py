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
from moiety.workload.routing import Routing, by_sequences, read_routing, select_tokens, windowed

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


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", ">i4", "<u4", "<u8", ">u8", ">i8"])
def test_whole_numbers_of_any_width_and_byte_order_are_alike(dtype: str) -> None:
    routing = read(npz(topk=TOPK.astype(dtype), sequence=np.array([7, 7], dtype=dtype)))
    assert routing.topk is not None
    assert routing.sequence is not None
    assert routing.topk.tolist() == TOPK.tolist()
    assert routing.topk.dtype.isnative
    assert (routing.topk + np.int64(0)).dtype.kind == "i"
    assert (routing.sequence + np.int64(0)).dtype.kind == "i"
    assert windowed(routing, 2).counts.tolist() == [[[1, 1, 0, 0], [0, 1, 0, 1]], [[1, 0, 1, 0], [0, 0, 1, 1]]]


def test_known_model_has_experts_that_no_token_chose() -> None:
    assert read(npz(topk=TOPK), num_experts=6, num_layers=2).counts.shape == (1, 2, 6)


def test_windows_are_summed() -> None:
    routing = read(npz(counts=[[[1, 0], [0, 0]], [[1, 2], [0, 0]]]))
    assert routing.num_windows == 2
    assert routing.load_share().tolist() == [[0.5, 0.5], [0.5, 0.5]]  # nothing seen of layer 1: uniform
    assert read(npz(counts=[[1.0, 3.0]])).load_share().tolist() == [[0.25, 0.75]]


def test_an_empty_window_says_nothing_and_stays() -> None:
    routing = read(npz(counts=[[[0, 0]], [[1, 3]]]))
    assert routing.num_windows == 2
    assert routing.load_share().tolist() == [[0.25, 0.75]]
    assert "are all 0" in refused(npz(counts=[[[0, 0]], [[0, 0]]]))


def test_padding_tokens_are_left_out_with_their_sequence() -> None:
    padded = np.insert(TOPK, 1, -1, axis=1)
    routing = read(npz(topk=padded, sequence=[4, 5, 6]))
    assert routing.topk is not None
    assert routing.sequence is not None
    assert routing.topk.tolist() == TOPK.tolist()
    assert routing.sequence.tolist() == [4, 6]
    assert routing.counts.tolist() == read(npz(topk=TOPK)).counts.tolist()


@given(
    npst.arrays(np.int16, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements={"min_value": 0, "max_value": 6}),
    st.integers(1, 9),
)
def test_windows_hold_every_token_once_in_order(first: np.ndarray, num_windows: int) -> None:
    topk = np.stack([first, first + 1], axis=2)
    whole = Routing(counts=read(npz(topk=topk), num_experts=8).counts, topk=topk)
    if num_windows > topk.shape[1]:
        with pytest.raises(InputError, match="windows"):
            windowed(whole, num_windows)
        return
    cut = windowed(whole, num_windows)
    assert cut.counts.sum(axis=0).tolist() == whole.counts[0].tolist()
    tokens = cut.counts[:, 0].sum(axis=1) / 2
    assert tokens.max() - tokens.min() <= 1
    head = whole.topk[:, : int(tokens[0])] if whole.topk is not None else None
    assert head is not None
    assert cut.counts[0, 0].tolist() == np.bincount(head[0].ravel(), minlength=8).tolist()


def test_a_split_by_sequence_parts_the_tokens() -> None:
    topk = np.arange(12).reshape(1, 6, 2)
    whole = read(npz(topk=topk, sequence=[3, 3, 5, 5, 3, 9]))
    train, test = by_sequences(whole, [3]), by_sequences(whole, np.array([5, 9]))
    assert train.topk is not None
    assert test.sequence is not None
    assert train.topk.tolist() == topk[:, [0, 1, 4]].tolist()
    assert test.sequence.tolist() == [5, 5, 9]
    assert (train.counts + test.counts).tolist() == whole.counts.tolist()


def test_a_selection_needs_tokens() -> None:
    counts = read(npz(counts=[[1.0, 2]]))
    whole = read(npz(topk=TOPK, sequence=[1, 2]))
    for selection in (
        lambda: windowed(counts, 2),
        lambda: windowed(whole, 0),
        lambda: by_sequences(counts, [1]),
        lambda: by_sequences(read(npz(topk=TOPK)), [1]),
        lambda: by_sequences(whole, [7]),
        lambda: select_tokens(whole, np.zeros(2, bool)),
    ):
        with pytest.raises(InputError):
            selection()


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
        (b'{"counts": [[1, 2], [3]]}', "counts[1]: has 1 entries, counts[0] has 2"),
        (b'{"topk": [[[0, 1]], [[2, 3], [4, 5]]]}', "topk[1]: has 2 entries, topk[0] has 1"),
        (b'{"topk": [[[0, 1], [2]]]}', "topk[0][1]: has 1 entries, topk[0][0] has 2"),
        (b'{"topk": [[[0, 1], 2]]}', "topk[0][1]: is a single value"),
        (b'{"counts": [[1, 1], [1, NaN]]}', "layer 1, expert 1 has nan"),
        (b'{"counts": [[[1, 1]], [[Infinity, 1]]]}', "window 1, layer 0, expert 0 has inf"),
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
        (npz(topk=[[[-1]]]), "every token is padding"),
        (npz(topk=[[[0, 1], [0, -1]], [[0, 1], [0, 1]]]), "holds expert -1 (layer 0, token 1)"),
        (npz(topk=[[[0, 1], [-1, -1]], [[0, 1], [0, 1]]]), "holds expert -1 (layer 0, token 1)"),
        (npz(topk=[[[0, -2]]]), "holds expert -2 (layer 0, token 0)"),
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
        (pickle.dumps({"logical_count": [1]}), "Python pickle"),
    ],
)
def test_what_is_no_routing_is_refused(data: bytes, said: str) -> None:
    assert said in refused(data)


def test_model_must_agree() -> None:
    assert "holds expert 3, numbered from 0; the model has 3 experts (layer 1, token 0)" in refused(
        npz(topk=TOPK), num_experts=3
    )
    assert "has 4 experts, the model 8" in refused(npz(counts=[[1, 1, 1, 1]]), num_experts=8)
    assert "has 2 layers, the model 3" in refused(npz(topk=TOPK), num_layers=3)


def test_pickles_are_never_run() -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (pytest.fail, ("the pickle was run",))

    stream = io.BytesIO()
    np.savez(stream, counts=np.array([[Trap()]], dtype=object))
    assert "pickle" in refused(stream.getvalue())


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


def test_a_token_that_names_an_expert_twice_is_twice_the_work() -> None:
    assert read_routing(npz(topk=[[[0, 1], [2, 2]]]), source="x").counts.tolist() == [[[1, 1, 2]]]
