"""Dumps in a folder: SGLang's formats, half-written files, and each of them once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from moiety.errors import InputError
from moiety.model.catalog import load_catalog_model
from moiety.watch.dumps import read_dumps
from tests.watch.engines import pass_dump, stat_dump

if TYPE_CHECKING:
    from pathlib import Path

MODEL = load_catalog_model("mixtral-8x7b")
LAYERS, EXPERTS = MODEL.num_layers, 8


def test_each_dump_is_counted_once_and_those_of_a_round_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    passes = rng.integers(0, 50, (3, LAYERS, EXPERTS))
    assert read_dumps(tmp_path / "not-yet", (), MODEL, EXPERTS).counts is None
    stat_dump(tmp_path, passes[:2], "1.5")
    stat_dump(tmp_path, passes[2:], "2.5")
    (tmp_path / "notes.txt").write_text("no dump")
    found = read_dumps(tmp_path, (), MODEL, EXPERTS)
    assert found.counts is not None
    assert found.counts.tolist() == passes.sum(axis=0).tolist()
    assert found.slot_map is None
    assert read_dumps(tmp_path, found.read, MODEL, EXPERTS).counts is None
    stat_dump(tmp_path, passes[:1] + 1, "1.5")  # another one under the same name
    assert len(read_dumps(tmp_path, found.read, MODEL, EXPERTS).read) == 1


def test_the_newest_dump_says_what_the_engine_holds(tmp_path: Path) -> None:
    slot_map = np.tile(np.arange(12) % EXPERTS, (LAYERS, 1))
    counts = np.ones((2, LAYERS, 12), dtype=np.int32)
    pass_dump(tmp_path, counts, slot_map[:, ::-1].copy(), "1.0")
    found = read_dumps(tmp_path, (), MODEL, EXPERTS)
    assert found.counts is not None
    assert found.counts[0].tolist() == [4, 4, 4, 4, 2, 2, 2, 2]
    assert found.slot_map is not None
    assert found.slot_map.tolist() == slot_map[:, ::-1].tolist()


SLOTS = np.tile(np.arange(12) % EXPERTS, (LAYERS, 1))
RANKS, PASSES = 4, 3
OWN = np.repeat(np.arange(RANKS), 12 // RANKS)
"""The rank of each slot."""


def recorded(rng: np.random.Generator, exchange: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Return what each rank records, [passes, layers, slots], and all tokens by expert, [layers, experts]."""
    counts = rng.integers(1, 50, (RANKS, PASSES, LAYERS, 12), dtype=np.int32)
    match exchange:
        case "none":  # all compute all tokens
            counts[:] = counts[0]
            each = counts[0]
        case "deepep, own tokens":
            each = counts.sum(axis=0)
        case _:  # what the rank's own experts got
            counts *= (np.arange(RANKS)[:, None] == OWN)[:, None, None]
            each = counts.sum(axis=0)
    found = np.zeros((LAYERS, EXPERTS))
    for slot in range(12):
        found[:, SLOTS[0, slot]] += each.sum(axis=0)[:, slot]
    return list(counts), found


@pytest.mark.parametrize("exchange", ["none", "deepep, own tokens", "deepep, own experts"])
def test_ranks_that_write_a_file_each_make_one_dump(exchange: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    of, tokens = recorded(rng, exchange)
    for rank in (2, 0, 1):
        pass_dump(tmp_path, of[rank], SLOTS, f"7.{rank}", rank=rank, first=40)
    found = read_dumps(tmp_path, (), MODEL, EXPERTS, num_ranks=RANKS)
    assert (found.counts, found.read, len(found.awaiting)) == (None, frozenset(), 3)
    pass_dump(tmp_path, of[3], SLOTS, "7.3", rank=3, first=41)  # it may have begun later
    found = read_dumps(tmp_path, (), MODEL, EXPERTS, num_ranks=RANKS, doubtful=found.awaiting)
    assert (len(found.read), len(found.awaiting)) == (4, 0)
    assert found.counts is not None
    assert found.counts.tolist() == tokens.tolist()
    of, more = recorded(rng, exchange)
    for rank in range(RANKS):
        pass_dump(tmp_path, of[rank], SLOTS, f"9.{rank}", rank=rank, first=44)
    both = read_dumps(tmp_path, (), MODEL, EXPERTS, num_ranks=RANKS)
    assert both.counts is not None
    assert both.counts.tolist() == (tokens + more).tolist(), "two dumps, in one look"
    new = read_dumps(tmp_path, found.read, MODEL, EXPERTS, num_ranks=RANKS)
    assert new.counts is not None
    assert new.counts.tolist() == more.tolist()


def test_ranks_whose_files_do_not_come_are_waited_for_as_long_as_anything_is_written(tmp_path: Path) -> None:
    counts = np.ones((PASSES, LAYERS, 12), dtype=np.int32)
    pass_dump(tmp_path, counts, SLOTS, "1")
    first = read_dumps(tmp_path, (), MODEL, EXPERTS, num_ranks=RANKS)
    other = pass_dump(tmp_path, counts, SLOTS, "1", rank=1)
    whole = other.read_bytes()
    other.write_bytes(whole[: len(whole) // 2])
    second = read_dumps(tmp_path, (), MODEL, EXPERTS, num_ranks=RANKS, doubtful=first.awaiting)
    assert (second.counts, second.awaiting, len(second.broken)) == (None, first.awaiting, 1)
    other.unlink()
    third = read_dumps(tmp_path, (), MODEL, EXPERTS, num_ranks=RANKS, doubtful=second.awaiting)
    assert third.read == first.awaiting
    assert third.counts is not None


def test_what_cannot_be_read_is_named_and_keeps_the_rest(tmp_path: Path) -> None:
    whole = stat_dump(tmp_path, np.ones((1, LAYERS, EXPERTS)), "1").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "other.json").write_text('{"counts": [[1, 2], [3, 4]]}')
    found = read_dumps(tmp_path, (), MODEL, EXPERTS)
    assert len(found.read) == 1
    assert {mark.name for mark in found.broken} == {"half.pt", "empty.pt", "other.json"}
    assert all(why.startswith(mark.name) and "\n" not in why for mark, why in found.broken.items())
    (tmp_path / "half.pt").write_bytes(whole)
    assert {mark.name for mark in read_dumps(tmp_path, found.read, MODEL, EXPERTS).read} == {"half.pt"}
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="--dumps"):
        read_dumps(file, (), MODEL, EXPERTS)
