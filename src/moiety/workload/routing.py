"""Routing: which experts the tokens of a real run went to, read from a dump."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

MAX_EXPERTS = 65_536
_MAX_COUNT = 1e18


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """Tokens per expert, and where the dump has it each token's choice."""

    counts: NDArray[np.float64]
    """Tokens sent to each expert, `[windows, layers, experts]`."""
    topk: NDArray[np.integer[Any]] | None = None
    """Experts that each token went to, `[layers, tokens, k]`."""
    sequence: NDArray[np.integer[Any]] | None = None
    """Sequence that each token belongs to, `[tokens]`."""
    slot_map: NDArray[np.int64] | None = None
    """Expert of each slot when the dump was written, `[layers of the dump, slots]`; SGLang's `records` have it."""
    recorded_by: tuple[int, int, int] | None = None
    """Rank that has recorded it, first and last forward pass, where each rank writes a file: SGLang's `records`."""

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
    """Return the routing that a dump holds: `.npz`, JSON or PyTorch's `.pt`, read without PyTorch.

    Its keys: `topk` `[layers, tokens, k]` and optionally `sequence` `[tokens]`; `counts` or SGLang's `logical_count`,
    `[layers, experts]` or `[windows, layers, experts]`; or SGLang's `records` (see `sglang_dump`). A token whose
    entries are -1 in all layers is padding and left out; one that names an expert twice, as in a shuffled trace, is
    that much work for it, and reaches it once; a window without tokens says nothing and stays. `num_experts`
    and `num_layers` are the model's, where it is known. Raises InputError for anything that is not such a dump.
    """
    from moiety.workload.routing_file import arrays_of_file  # noqa: PLC0415 - planning without a dump needs no numpy

    arrays = arrays_of_file(data, source)
    topk, sequence = _checked_tokens(arrays, source, num_experts)
    if "counts" in arrays or "logical_count" in arrays:
        counts = _counts_of(arrays, source)
    elif topk is not None:
        size = num_experts or max(int(arrays.get("num_experts", 0)), int(topk.max()) + 1)
        counts = _counted(topk, size)
    else:
        raise InputError("holds no routing", source=source, remedy="it needs topk, counts, logical_count or records")
    if topk is not None and counts.shape[1] != topk.shape[0]:
        _refuse(source, "counts", f"has {counts.shape[1]} layers, topk has {topk.shape[0]}")
    if topk is not None and int(topk.max()) >= counts.shape[2]:
        _refuse(source, "topk", f"names expert {int(topk.max())}, counts has {counts.shape[2]} experts")
    for what, found, expected in (("experts", counts.shape[2], num_experts), ("layers", counts.shape[1], num_layers)):
        if expected is not None and found != expected:
            key = "topk" if topk is not None else "counts"
            _refuse(source, key, f"has {found} {what}, the model {expected}")
    by = arrays["recorded_by"].tolist() if "recorded_by" in arrays else None
    recorded_by = None if by is None else (by[0], by[1], by[2])
    return Routing(counts, topk, sequence, arrays.get("slot_map"), recorded_by)


def windowed(routing: Routing, num_windows: int) -> Routing:
    """Return the same tokens counted in consecutive windows of equally many (to one), `[windows, layers, experts]`.

    Raises InputError where the dump has no tokens, or fewer than windows.
    """
    import numpy as np  # noqa: PLC0415 - as above

    topk = _tokens(routing, "windows")
    num_tokens = topk.shape[1]
    if not 1 <= num_windows <= num_tokens:
        raise InputError(f"must be from 1 to the {num_tokens} tokens", field="windows", value=num_windows)
    experts = routing.num_experts
    start = (
        np.arange(num_tokens, dtype=np.int64) * num_windows // num_tokens * experts
    )  # of each token's window in the flat counts
    rows = [np.bincount((layer + start[:, None]).ravel(), minlength=num_windows * experts) for layer in topk]
    counts = np.stack(rows).reshape(routing.num_layers, num_windows, experts).swapaxes(0, 1)
    return Routing(counts=np.ascontiguousarray(counts, dtype=np.float64), topk=topk, sequence=routing.sequence)


def by_sequences(routing: Routing, sequences: Iterable[int] | NDArray[np.integer[Any]]) -> Routing:
    """Return the routing of these sequences' tokens alone, in their order, as one window.

    Raises InputError where the dump does not know sequences, or none of these.
    """
    import numpy as np  # noqa: PLC0415 - as above

    if routing.sequence is None:
        raise InputError("the dump does not say which sequence a token belongs to", field="sequence")
    wanted = np.asarray(list(sequences))
    return select_tokens(routing, np.isin(routing.sequence, wanted))


def select_tokens(routing: Routing, chosen: NDArray[np.bool_]) -> Routing:
    """Return the routing of the tokens that `chosen`, `[tokens]`, marks, as one window of the same experts.

    Raises InputError where the dump has no tokens, or none is chosen.
    """
    topk = _tokens(routing, "tokens")[:, chosen]
    if topk.shape[1] == 0:
        raise InputError("none of the dump's tokens is chosen", field="tokens")
    sequence = None if routing.sequence is None else routing.sequence[chosen]
    return Routing(counts=_counted(topk, routing.num_experts), topk=topk, sequence=sequence)


def _tokens(routing: Routing, field: str) -> NDArray[np.integer[Any]]:
    if routing.topk is None:
        raise InputError("the dump has counts, not the choice of each token", field=field)
    return routing.topk


def _refuse(source: str, field: str, rule: str, remedy: str | None = None) -> NoReturn:
    raise InputError(rule, source=source, field=field, remedy=remedy)


def _integers(array: NDArray[Any], source: str, key: str, shape: str) -> NDArray[np.integer[Any]]:
    if array.ndim != shape.count(",") + 1 or array.size == 0:
        _refuse(source, key, f"must have the shape [{shape}], none of them 0; it has {list(array.shape)}")
    if array.dtype.kind not in "iu":
        _refuse(source, key, f"must hold whole numbers; it holds {array.dtype.name}")
    return cast("NDArray[np.integer[Any]]", array)


def _checked_tokens(
    arrays: Mapping[str, NDArray[Any]], source: str, num_experts: int | None
) -> tuple[NDArray[np.integer[Any]] | None, NDArray[np.integer[Any]] | None]:
    """Return each token's choice and sequence, padding left out; None for what the dump lacks."""
    topk = _integers(arrays["topk"], source, "topk", "layers, tokens, k") if "topk" in arrays else None
    sequence = _integers(arrays["sequence"], source, "sequence", "tokens") if "sequence" in arrays else None
    if sequence is not None and (topk is None or sequence.shape[0] != topk.shape[1]):
        tokens = "there is no topk" if topk is None else f"topk has {topk.shape[1]}"
        _refuse(source, "sequence", f"has {sequence.shape[0]} tokens; {tokens}")
    if topk is None:
        return None, None
    if int(topk.min()) == -1:
        real = ~(topk == -1).all(axis=(0, 2))
        if not real.any():
            _refuse(source, "topk", "every token is padding: all entries are -1")
        topk = topk[:, real]
        sequence = sequence if sequence is None else sequence[real]
    _check_ids(topk, source, num_experts)
    return _signed(topk), None if sequence is None else _signed(sequence)


def _signed(array: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Return the numbers in this machine's byte order; those of 8 bytes signed, so that they add to signed ones."""
    import numpy as np  # noqa: PLC0415 - as above

    if array.dtype.kind == "u" and array.dtype.itemsize == np.dtype(np.int64).itemsize:
        return array.astype(np.int64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_ids(topk: NDArray[np.integer[Any]], source: str, num_experts: int | None) -> None:
    low, high = int(topk.min()), int(topk.max())
    if low < 0:
        padding = "; -1 marks padding only where a token has it in all layers" if low == -1 else ""
        _refuse(source, "topk", f"holds expert {low} ({_place(topk == low)}); experts are numbered from 0{padding}")
    limit = MAX_EXPERTS if num_experts is None else num_experts
    if high >= limit:
        owner = "at most" if num_experts is None else "the model has"
        place = _place(topk == high)
        _refuse(source, "topk", f"holds expert {high}, numbered from 0; {owner} {limit} experts ({place})")
    if topk.shape[2] > (high + 1 if num_experts is None else num_experts):
        remedy = "say how many there are, where the last ones are never used" if num_experts is None else None
        _refuse(source, "topk", f"has {topk.shape[2]} experts a token, more than there are", remedy)


def _place(wrong: NDArray[np.bool_]) -> str:
    import numpy as np  # noqa: PLC0415 - as above

    layer, token, _ = np.unravel_index(int(wrong.argmax()), wrong.shape)
    return f"layer {int(layer)}, token {int(token)}"


def _counted(topk: NDArray[np.integer[Any]], num_experts: int) -> NDArray[np.float64]:
    """Return how many tokens each expert got, `[1, layers, experts]`."""
    import numpy as np  # noqa: PLC0415 - as above

    rows = [np.bincount(layer.ravel().astype(np.int64), minlength=num_experts) for layer in topk]
    return np.stack(rows)[None].astype(np.float64)


def _counts_of(arrays: Mapping[str, NDArray[Any]], source: str) -> NDArray[np.float64]:
    """Return the dump's counts, `[windows, layers, experts]`; SGLang's single forward passes gathered into windows."""
    if "counts" in arrays:
        return _checked_counts(arrays["counts"], source, "counts")
    from moiety.workload.sglang_dump import gather_passes  # noqa: PLC0415 - as above

    return gather_passes(_checked_counts(arrays["logical_count"], source, "logical_count"))


def _checked_counts(array: NDArray[Any], source: str, key: str) -> NDArray[np.float64]:
    import numpy as np  # noqa: PLC0415 - as above

    if array.ndim not in {2, 3} or array.size == 0:
        shapes = "[layers, experts] or [windows, layers, experts], none of them 0"
        _refuse(source, key, f"must have the shape {shapes}; it has {list(array.shape)}")
    if array.dtype.kind not in "iuf":
        _refuse(source, key, f"must hold numbers; it holds {array.dtype.name}")
    if array.shape[-1] > MAX_EXPERTS:
        _refuse(source, key, f"has {array.shape[-1]} experts; at most {MAX_EXPERTS} are planned")
    counts = array.astype(np.float64)
    right = (counts >= 0) & (counts <= _MAX_COUNT)
    if not right.all():
        *window, layer, expert = (int(each) for each in np.argwhere(~right)[0])
        place = "".join(f"window {each}, " for each in window) + f"layer {layer}, expert {expert}"
        found = float(counts[(*window, layer, expert)])
        _refuse(source, key, f"must be finite, from 0 to {_MAX_COUNT:g}; {place} has {found:g}")
    if not counts.any():
        _refuse(source, key, "are all 0: no token was counted")
    return counts if counts.ndim == 3 else counts[None]  # noqa: PLR2004 - windows, layers, experts
