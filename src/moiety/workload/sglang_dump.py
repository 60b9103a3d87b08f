"""SGLang's expert-distribution dumps: counts of forward passes, or each token's choice pass by pass.

The keys are those that SGLang's recorder writes (`python/sglang/srt/eplb/expert_distribution.py`): in the modes `stat`
and `stat_approx` `logical_count` `[passes, layers, experts]`, summed over ranks; in `per_pass` and `per_token` a list
`records`, one a forward pass of one rank, in physical expert ids, beside `last_physical_to_logical_map`
`[layers, slots]`. One rank's file is enough: ranks that share their tokens record the same ones, others a sample. Not
so in `per_pass` with DeepEP's low-latency dispatch: there each rank records what its own experts got.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from moiety.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MAX_PASS_WINDOWS = 32
"""Windows that the counts of single forward passes are gathered into."""
_TOPK = "topk_ids_of_layer"
_COUNT = "global_physical_count"
_MAP = "last_physical_to_logical_map"
_TOO_LARGE = 2**63
_COUNT_DIMENSIONS = 3
"""Of counts: passes, layers, experts."""


def gather_passes(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return counts of forward passes, `[passes, layers, experts]`, as at most 32 windows of consecutive passes.

    Few passes stay as they are. Of many, those without a token (the recorder's unused buffer) go, and the rest are
    gathered into windows of about equally many tokens, because one pass alone says little.
    """
    if len(counts) <= MAX_PASS_WINDOWS:
        return counts
    tokens = counts.sum(axis=(1, 2))
    used, tokens = counts[tokens > 0], tokens[tokens > 0]
    middle = np.cumsum(tokens) - tokens / 2
    window = np.minimum((middle * (MAX_PASS_WINDOWS / tokens.sum())).astype(np.int64), MAX_PASS_WINDOWS - 1)
    starts = np.flatnonzero(np.diff(window, prepend=-1))
    return np.add.reduceat(used, starts, axis=0)


def arrays_of_records(found: Mapping[str, object], source: str) -> dict[str, NDArray[Any]]:
    """Return `topk` (and `sequence` where it can be known), or `counts`, of a dump's `records`, in logical experts.

    Where the dump says which expert each slot held, that is `slot_map` `[layers, slots]`, for all layers of the dump;
    where it says which rank has recorded which passes, `recorded_by` is that rank, the first and the last of them.

    The passes' tokens follow each other. Layers without experts and unused places of the recorder's wide rows, both
    -1 throughout, are left out. Raises InputError for records of another form.
    """
    records = found["records"]
    if not isinstance(records, (list, tuple)) or not records:
        _refuse(source, "records", "must be a list of at least one forward pass")
    passes = cast("list[object]", records)
    for index, each in enumerate(passes):
        if not isinstance(each, dict):
            _refuse(source, f"records[{index}]", "must hold the keys of a forward pass")
    typed = cast("list[dict[str, object]]", passes)
    key = _TOPK if _TOPK in typed[0] else _COUNT
    arrays = [_pass_array(each, index, key, source) for index, each in enumerate(typed)]
    shapes = {(each.shape[0], each.shape[2]) if key == _TOPK else each.shape for each in arrays}
    if len(shapes) > 1:
        _refuse(source, f"records[].{key}", f"differ in shape from pass to pass: {sorted(shapes)[:3]}")
    logical = _logical_of_physical(found.get(_MAP), arrays[0].shape[0], source)
    result: dict[str, NDArray[Any]] = {} if logical is None else {"slot_map": logical}
    result |= _recorded_by(typed)
    if key == _COUNT:
        return {**result, "counts": gather_passes(_logical_counts(np.stack(arrays), logical, source))}
    topk = _logical_topk(np.concatenate(arrays, axis=1), logical, source)
    result["topk"] = topk
    if logical is not None:
        result["num_experts"] = np.asarray(int(logical.max()) + 1)
    sequence = _sequences(typed, [each.shape[1] for each in arrays])
    if sequence is not None and len(sequence):
        result["sequence"] = sequence
    return result


def _refuse(source: str, field: str, rule: str, remedy: str | None = None) -> NoReturn:
    raise InputError(rule, source=source, field=field, remedy=remedy)


def _pass_array(record: Mapping[str, object], index: int, key: str, source: str) -> NDArray[Any]:
    field = f"records[{index}].{key}"
    if key not in record:
        remedy = "record with --expert-distribution-recorder-mode per_token, per_pass or stat"
        _refuse(source, field, f"is missing; a pass holds {_TOPK} or {_COUNT}", remedy)
    try:
        array = np.asarray(record[key])
    except ValueError:
        _refuse(source, field, "has rows of different length")
    if array.size == 0 and array.ndim == _COUNT_DIMENSIONS:
        array = array.astype(np.int32)  # an idle pass
    wanted, shape = (3, "[layers, tokens, k]") if key == _TOPK else (2, "[layers, slots]")
    if array.ndim != wanted or 0 in (array.shape[0], array.shape[-1]):
        _refuse(source, field, f"must have the shape {shape}; it has {list(array.shape)}")
    if array.dtype.kind not in "iu":
        _refuse(source, field, f"must hold whole numbers; it holds {array.dtype.name}")
    return array


def _logical_of_physical(value: object, num_layers: int, source: str) -> NDArray[np.int64] | None:
    """Return the checked map from slots to experts, `[layers, slots]`; without one, ids are those of experts."""
    if value is None:
        return None
    try:
        found = np.asarray(value)
    except ValueError:
        _refuse(source, _MAP, "has layers of different length")
    if found.ndim != 2 or found.size == 0 or found.dtype.kind not in "iu":  # noqa: PLR2004 - layers, slots
        _refuse(source, _MAP, f"must be whole numbers [layers, slots]; it is {found.dtype.name} {list(found.shape)}")
    if found.shape[0] != num_layers:
        _refuse(source, _MAP, f"has {found.shape[0]} layers, the passes have {num_layers}")
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= found.shape[1]:
        wrong = low if low < 0 else high
        _refuse(source, _MAP, f"names expert {wrong}; {found.shape[1]} slots hold experts from 0 on")
    return found.astype(np.int64)


def _logical_counts(counts: NDArray[Any], logical: NDArray[np.int64] | None, source: str) -> NDArray[np.float64]:
    """Return the passes' counts by expert, `[passes, layers, experts]`, from those by slot."""
    if logical is None:
        return counts.astype(np.float64)
    if counts.shape[2] != logical.shape[1]:
        _refuse(source, f"records[].{_COUNT}", f"has {counts.shape[2]} slots, {_MAP} has {logical.shape[1]}")
    found = np.zeros((*counts.shape[:2], int(logical.max()) + 1))
    for layer, row in enumerate(logical):
        np.add.at(found[:, layer].T, row, counts[:, layer].T)
    return found


def _logical_topk(topk: NDArray[Any], logical: NDArray[np.int64] | None, source: str) -> NDArray[Any]:
    """Return the choices as experts, `[layers, tokens, k]`, -1 where a token is padding."""
    low = int(topk.min())
    if low < -1:
        _refuse(source, f"records[].{_TOPK}", f"holds {low}; slots are numbered from 0, and -1 is none")
    highest = topk.max(axis=1)  # [layers, k]
    in_layer, in_place = highest.max(axis=1) >= 0, highest.max(axis=0) >= 0
    if not in_layer.any():
        _refuse(source, f"records[].{_TOPK}", "names no expert: every entry is -1")
    if not (in_layer.all() and in_place.all()):
        topk = topk[np.ix_(in_layer, np.ones(topk.shape[1], bool), in_place)]
        logical = logical if logical is None else logical[in_layer]
    if logical is None:
        return topk
    high, slots = int(topk.max()), logical.shape[1]
    if high >= slots:
        remedy = "with fused shared experts SGLang records wrong ids: --disable-shared-experts-fusion"
        _refuse(source, f"records[].{_TOPK}", f"names slot {high}; {_MAP} has {slots} slots", remedy)
    found = np.empty_like(topk)
    for layer, row in enumerate(logical):  # layer by layer: the lookup's index stays small
        found[layer] = np.append(row, -1).astype(topk.dtype)[topk[layer]]  # index -1, the last, stays -1
    return found


def _sequences(records: list[dict[str, object]], num_tokens: list[int]) -> NDArray[np.int64] | None:
    """Return the sequence of each token; None where no pass was a prefill.

    A prefill pass says how long the pieces of its sequences are (`extend_seq_lens`). A piece that starts at the
    position where the last piece of the pass before ended goes on with that sequence. SGLang does not record whose
    turn a decoded token is: each counts as a sequence of its own.
    """
    following, expected = 0, -1
    any_known = False
    parts: list[NDArray[np.int64]] = []
    for record, count in zip(records, num_tokens, strict=True):
        lengths, positions = _integers(record.get("extend_seq_lens")), _integers(record.get("positions")) or []
        known = bool(lengths) and min(lengths or ()) >= 0 and sum(lengths or ()) <= min(count, len(positions))
        pieces = [*(lengths or () if known else ())]
        goes_on = known and positions[:1] == [expected]
        first = following - 1 if goes_on else following
        total = sum(pieces)
        expected = positions[total - 1] + 1 if total else -1
        following = first + len(pieces)
        parts.append(first + np.repeat(np.arange(len(pieces)), pieces))
        parts.append(np.arange(following, following + count - total))  # decoded tokens, and padding
        if count > total:
            following, expected = following + count - total, -1
        any_known |= known
    return np.concatenate(parts).astype(np.int64) if any_known else None


def _recorded_by(records: list[dict[str, object]]) -> dict[str, NDArray[Any]]:
    """Return the rank that recorded the passes, and the numbers of the first and last; nothing where it is not said."""
    ranks, numbers = (_integers([each.get(key) for each in records]) for key in ("rank", "forward_pass_id"))
    if not ranks or not numbers or len({*ranks}) > 1:
        return {}
    if not all(0 <= each < _TOO_LARGE for each in (*ranks, *numbers)):
        return {}
    return {"recorded_by": np.array([ranks[0], min(numbers), max(numbers)], dtype=np.int64)}


def _integers(value: object) -> list[int] | None:
    """Return the list where it is one of whole numbers, from a list or an array; else None."""
    if isinstance(value, np.ndarray):
        array = cast("NDArray[Any]", value)
        return array.tolist() if array.ndim == 1 and array.dtype.kind in "iu" else None
    if not isinstance(value, list):
        return None
    numbers = cast("list[object]", value)
    return cast("list[int]", numbers) if all(type(each) is int for each in numbers) else None
