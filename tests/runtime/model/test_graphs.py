"""What can be said of CUDA graphs without a GPU: which steps cannot be captured, and what captured ones look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moiety.runtime.model.batch import Batch, Segment
from moiety.runtime.model.cached_rows import runs_of, seen_tokens
from moiety.runtime.model.graphs import obstacle_to_graphs
from moiety.runtime.seat import seat_of
from tests.runtime.checkpoints import save_checkpoint
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from pathlib import Path


@given(
    ends=st.lists(st.integers(2, 300), min_size=1, max_size=6),
    kept=st.integers(1, 512),
    window=st.none() | st.integers(1, 64),
)
def test_a_captured_step_looks_at_as_much_of_every_sequence_and_masks_what_is_not_there(
    ends: list[int], kept: int, window: int | None
) -> None:
    batch = Batch([Segment(slot, end - 1, (0,), emits=True) for slot, end in enumerate(ends)])
    batch.most_cached = 512
    (run,) = runs_of(batch, kept)
    assert run.longest == min(kept, 512)
    seen = seen_tokens(batch, run, window)
    assert seen is not None
    for row, end in zip(seen, ends, strict=True):
        first = 0 if window is None else max(end - window, 0)
        assert row.tolist() == [first <= place < end for place in range(run.longest)]


@pytest.mark.parametrize(("strategy", "said"), [("tp1", None), ("tp2", "several ranks"), ("tp1_dp2_ep2", "several")])
def test_ranks_that_exchange_within_a_step_are_not_captured(strategy: str, said: str | None, tmp_path: Path) -> None:
    plan = plan_of(save_checkpoint("qwen3_moe", tmp_path / "model"), strategy, 1, 1 if strategy == "tp1" else 2)
    found = obstacle_to_graphs(seat_of(plan, 0), {})
    assert found is None if said is None else found is not None and said in found


def test_numbers_are_those_of_the_tensors() -> None:
    batch = Batch([Segment(2, 4, (7,), emits=True), Segment(3, 9, (8,), emits=False)])
    tensors = batch.tensors
    found = (tensors.token_ids, tensors.positions[0], tensors.emitting, tensors.slots, tensors.ends)
    assert [each.tolist() for each in found] == [list(each) for each in batch.numbers()]
    assert torch.equal(tensors.ends, torch.tensor([5, 10]))
