"""Noted steps of decoding are noted anew when experts move, when ranks are lost and when they come back."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")

from moiety.placement.migration.order import Move
from moiety.runtime.elastic.crew import Crew
from moiety.runtime.elastic.events import Ready, Switched
from moiety.runtime.elastic.limits import Limits
from moiety.runtime.job import Job
from tests.runtime.checkpoints import greedy_continuation, reference_model, save_checkpoint
from tests.runtime.elastic.serving import ENTRY, Journal
from tests.runtime.fp8_checkpoints import save_dequantised
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from moiety.dtypes import Dtype

ROOT = Path(__file__).parents[3]
PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7], [100, 50, 3, 2, 1, 77]]
NEW = 40


def reversed_rows(crew: Crew) -> list[Move]:
    """Return moves that turn every layer's slots around the ranks, all in one step."""
    placement = crew.plan.pools[0].placement
    assert placement is not None
    return [
        Move(layer, slot, row[-1 - slot], len(row) - 1 - slot, 0)
        for layer, row in enumerate(placement.physical_to_logical_map)
        for slot in range(len(row))
    ]


@pytest.mark.parametrize(("strategy", "redundant", "weights"), [("tp2_dp1_ep2", 0, "fp8"), ("tp1_dp2_ep2", 2, None)])
def test_tapes_are_made_anew_when_experts_move_and_ranks_go_and_come(
    strategy: str, redundant: int, weights: Dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts are divided inside an attention group or over two: the map that serves is part of what is noted."""
    monkeypatch.syspath_prepend(str(ROOT))
    folder = save_checkpoint("mixtral", tmp_path / "mixtral")
    plan = plan_of(folder, strategy, per_node=2, redundant=redundant, weights=weights)
    job = Job(plan=plan, checkpoint=str(folder), entry=ENTRY)
    model = reference_model(save_dequantised(folder, tmp_path / "dequantised") if weights else folder)
    expected = [greedy_continuation(model, prompt, NEW) for prompt in PROMPTS]
    with Crew(job, limits=Limits(silent_s=20.0, stuck_s=60.0)) as crew:
        crew.wait_ready()
        journal = begun(crew)
        crew.migrate(reversed_rows(crew), most_at_once=100)
        journal.run(crew, lambda: any(each.left == 0 for each in journal.of(Switched)))
        journal.run(crew)
        assert journal.new_tokens == expected

        journal = begun(crew)  # by the new map, in steps of the shapes that were noted under the old one
        os.kill(crew.ranks()[1].pid, signal.SIGKILL)
        journal.run(crew)
        assert len(journal.of(Ready)) == 1
        assert journal.num_played > 0, "by the one that is left"
        assert journal.new_tokens == expected

        crew.rejoin()
        journal.run(crew, lambda: len(journal.of(Ready)) == 2)
        journal = begun(crew)
        journal.run(crew)
        assert len(crew.ranks()) == 2
        assert journal.new_tokens == expected


def begun(crew: Crew) -> Journal:
    """Return sequences of which some steps have been computed in the arena."""
    journal = Journal(PROMPTS, NEW)
    journal.deal(crew)
    journal.run(crew, lambda: len(journal.computed) > 10)
    assert journal.num_played > 0
    assert not journal.is_done
    return journal
