"""Routing: which experts the tokens of a real run went to, read from a dump."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

MAX_EXPERTS = 65_536
_MAX_BYTES = 2 * 2**30
_MAX_COUNT = 1e18
_KEYS = ("topk", "counts", "sequence")


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """Tokens per expert, and where the dump has it each token's choice."""

    counts: NDArray[np.float64]
    """Tokens sent to each expert, `[windows, layers, experts]`."""
    topk: NDArray[np.integer[Any]] | None = None
    """Experts that each token went to, `[layers, tokens, k]`."""
    sequence: NDArray[np.integer[Any]] | None = None
    """Sequence that each token belongs to, `[tokens]`."""

    @property
    def num_windows(self) -> int:
        """Number of stretches of time that were counted apart."""
        return self.counts.shape[0]

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return self.counts.shape[1]

    @property
    def num_experts(self) -> int:
        """Number of experts a layer."""
        return self.counts.shape[2]

    def load_share(self) -> NDArray[np.float64]:
        """Return each expert's share of its layer's tokens, `[layers, experts]`; every row sums to 1.

        A layer without any token (a dense layer in the dump) is taken as uniform.
        """
        loads = self.counts.sum(axis=0)
        loads[loads.sum(axis=1) == 0] = 1.0
        return loads / loads.sum(axis=1, keepdims=True)


def read_routing(data: bytes, *, source: str, num_experts: int | None = None, num_layers: int | None = None) -> Routing:
    """Return the routing that a dump holds: `.npz` or JSON with `topk` or `counts`, and optionally `sequence`.

    `topk` is `[layers, tokens, k]`, `counts` `[layers, experts]` or `[windows, layers, experts]`, `sequence`
    `[tokens]`. `num_experts` and `num_layers` are the model's, where it is known. Raises InputError for anything that
    is not such a dump.
    """
    arrays = _arrays(data, source)
    if "topk" not in arrays and "counts" not in arrays:
        raise InputError("holds no routing", source=source, remedy="it needs topk or counts")
    topk = _checked_topk(arrays["topk"], source, num_experts) if "topk" in arrays else None
    if "counts" in arrays:
        counts = _checked_counts(arrays["counts"], source)
    else:
        counts = _counted(cast("NDArray[np.integer[Any]]", topk), num_experts)
    if topk is not None and counts.shape[1] != topk.shape[0]:
        _refuse(source, "counts", f"has {counts.shape[1]} layers, topk has {topk.shape[0]}")
    if topk is not None and int(topk.max()) >= counts.shape[2]:
        _refuse(source, "topk", f"names expert {int(topk.max())}, counts has {counts.shape[2]} experts")
    for what, found, expected in (("experts", counts.shape[2], num_experts), ("layers", counts.shape[1], num_layers)):
        if expected is not None and found != expected:
            key = "topk" if topk is not None else "counts"
            _refuse(source, key, f"has {found} {what}, the model {expected}")
    sequence = _checked_sequence(arrays["sequence"], source, topk) if "sequence" in arrays else None
    return Routing(counts=counts, topk=topk, sequence=sequence)


def _refuse(source: str, field: str, rule: str, remedy: str | None = None) -> NoReturn:
    raise InputError(rule, source=source, field=field, remedy=remedy)


def _arrays(data: bytes, source: str) -> Mapping[str, NDArray[Any]]:
    """Return the arrays under the known keys, told apart by content, not by the file's name."""
    if data.startswith(b"PK"):
        return _guarded(source, "a .npz file", lambda: _from_npz(data, source))
    if data.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise _torch_dump(source)
    if data.startswith(b"\x93NUMPY"):
        raise InputError("is a single array without a key", source=source, remedy="save it with numpy.savez(topk=...)")
    return _guarded(source, "JSON", lambda: _from_json(data, source))


def _torch_dump(source: str) -> InputError:
    rule = "is a PyTorch file, which cannot be read without running its pickle"
    remedy = "convert it: numpy.savez_compressed('routing.npz', counts=torch.load(...)['logical_count'].numpy())"
    return InputError(rule, source=source, remedy=remedy)


def _guarded(source: str, what: str, read: Callable[[], Mapping[str, NDArray[Any]]]) -> Mapping[str, NDArray[Any]]:
    try:
        return read()
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - what a broken file makes of the parsers has no common class
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise InputError(f"cannot be read as {what}: {reason}", source=source) from None


def _from_npz(data: bytes, source: str) -> Mapping[str, NDArray[Any]]:
    import numpy as np  # noqa: PLC0415 - planning without a dump starts without numpy

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename: entry.file_size for entry in archive.infolist()}
    if any(name.endswith("data.pkl") for name in entries):
        raise _torch_dump(source)
    wanted = [key for key in _KEYS if f"{key}.npy" in entries]
    size = sum(entries[f"{key}.npy"] for key in wanted)
    if size > _MAX_BYTES:
        raise InputError(f"unpacks to {size:,} bytes; at most {_MAX_BYTES:,} are read", source=source)
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {key: np.asarray(archive[key]) for key in wanted}


def _from_json(data: bytes, source: str) -> Mapping[str, NDArray[Any]]:
    import numpy as np  # noqa: PLC0415 - as above

    parsed: object = json.loads(data.decode("utf-8-sig"))
    if not isinstance(parsed, dict):
        raise InputError("must be a JSON object with topk or counts", source=source)
    found = cast("dict[str, object]", parsed)
    return {key: np.asarray(found[key]) for key in _KEYS if found.get(key) is not None}


def _integers(array: NDArray[Any], source: str, key: str, shape: str) -> NDArray[np.integer[Any]]:
    if array.ndim != shape.count(",") + 1 or array.size == 0:
        _refuse(source, key, f"must have the shape [{shape}], none of them 0; it has {list(array.shape)}")
    if array.dtype.kind not in "iu":
        _refuse(source, key, f"must hold whole numbers; it holds {array.dtype.name}")
    return cast("NDArray[np.integer[Any]]", array)


def _checked_topk(array: NDArray[Any], source: str, num_experts: int | None) -> NDArray[np.integer[Any]]:
    topk = _integers(array, source, "topk", "layers, tokens, k")
    low, high = int(topk.min()), int(topk.max())
    if low < 0:
        _refuse(source, "topk", f"holds expert {low}; experts are numbered from 0")
    limit = MAX_EXPERTS if num_experts is None else num_experts
    if high >= limit:
        owner = "at most" if num_experts is None else "the model has"
        _refuse(source, "topk", f"holds expert {high}, numbered from 0; {owner} {limit} experts")
    if topk.shape[2] > (high + 1 if num_experts is None else num_experts):
        _refuse(source, "topk", f"has {topk.shape[2]} experts a token, more than there are")
    return topk


def _counted(topk: NDArray[np.integer[Any]], num_experts: int | None) -> NDArray[np.float64]:
    """Return how many tokens each expert got, `[1, layers, experts]`."""
    import numpy as np  # noqa: PLC0415 - as above

    size = num_experts or int(topk.max()) + 1
    rows = [np.bincount(layer.ravel().astype(np.int64), minlength=size) for layer in topk]
    return np.stack(rows)[None].astype(np.float64)


def _checked_counts(array: NDArray[Any], source: str) -> NDArray[np.float64]:
    import numpy as np  # noqa: PLC0415 - as above

    if array.ndim not in {2, 3} or array.size == 0:
        shapes = "[layers, experts] or [windows, layers, experts], none of them 0"
        _refuse(source, "counts", f"must have the shape {shapes}; it has {list(array.shape)}")
    if array.dtype.kind not in "iuf":
        _refuse(source, "counts", f"must hold numbers; it holds {array.dtype.name}")
    if array.shape[-1] > MAX_EXPERTS:
        _refuse(source, "counts", f"has {array.shape[-1]} experts; at most {MAX_EXPERTS} are planned")
    counts = array.astype(np.float64)
    if not (np.isfinite(counts).all() and float(counts.min()) >= 0 and float(counts.max()) <= _MAX_COUNT):
        _refuse(source, "counts", f"must be finite, from 0 to {_MAX_COUNT:g}")
    if not counts.any():
        _refuse(source, "counts", "are all 0: no token was counted")
    return counts if counts.ndim == 3 else counts[None]  # noqa: PLR2004 - windows, layers, experts


def _checked_sequence(
    array: NDArray[Any], source: str, topk: NDArray[np.integer[Any]] | None
) -> NDArray[np.integer[Any]]:
    sequence = _integers(array, source, "sequence", "tokens")
    if topk is None or sequence.shape[0] != topk.shape[1]:
        tokens = "there is no topk" if topk is None else f"topk has {topk.shape[1]}"
        _refuse(source, "sequence", f"has {sequence.shape[0]} tokens; {tokens}")
    return sequence
