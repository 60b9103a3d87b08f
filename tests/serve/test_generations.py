"""Generations of ranks that come and go before the server's event loop has looked: none is taken for another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from moiety.runtime.elastic.events import Declared, Ready
from moiety.runtime.job import Job
from moiety.runtime.serving.order import StepOrder
from moiety.runtime.serving.ranks import Ranks, RanksLostError
from moiety.runtime.serving.restart_budget import RestartBudget
from tests.runtime.checkpoints import save_checkpoint
from tests.runtime.plans import plan_of

if TYPE_CHECKING:
    from pathlib import Path

    from moiety.runtime.elastic.events import Event
    from moiety.runtime.serving.ranks import Lead

FOUR, TWO = ("tp1_dp4_ep4", 4), ("tp1_dp2_ep2", 2)


class Story:
    """Ranks without processes, which hear what a crew would have them hear."""

    def __init__(self, folder: Path) -> None:
        checkpoint = save_checkpoint("qwen3_moe", folder / "model")
        self._plans = {each: plan_of(checkpoint, each[0], 1, each[1]) for each in (FOUR, TWO)}
        job = Job(plan=self._plans[FOUR], checkpoint=str(checkpoint))
        self.ranks = Ranks(job, RestartBudget(0), cast("Lead", None))

    def begins(self, number: int, of: tuple[str, int], *, kept: bool) -> None:
        """Have a generation declared and ready, at once for whoever waits in the event loop."""
        plan = self._plans[of]
        events: tuple[Event, ...] = (
            Declared(number, plan),
            Ready(number, plan, 0.0, tuple(range(of[1])), (kept,) * of[1]),
        )
        for each in events:
            self.ranks._take(each)  # noqa: SLF001 - as the thread that follows the crew has the loop call it


def test_a_generation_that_was_followed_by_another_at_once_has_ended(tmp_path: Path) -> None:
    async def told() -> None:
        story = Story(tmp_path)
        story.begins(1, FOUR, kept=False)
        assert await story.ranks.ready() == (None,) * 4
        waits = asyncio.create_task(story.ranks.lost())
        await asyncio.sleep(0)
        story.begins(2, TWO, kept=True)
        with pytest.raises(RanksLostError):
            await asyncio.wait_for(waits, timeout=10.0)
        with pytest.raises(RanksLostError):  # an order for four groups is nothing for two
            await story.ranks.step(StepOrder(number=0, groups=((),) * 4))
        assert await story.ranks.ready() == (0, 1)

    asyncio.run(told())


@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False), (True, True), (False, False)])
def test_caches_are_kept_only_where_every_generation_has_kept_them(
    tmp_path: Path, *, first: bool, second: bool
) -> None:
    async def told() -> None:
        story = Story(tmp_path)
        story.begins(1, FOUR, kept=False)
        await story.ranks.ready()
        story.begins(2, FOUR, kept=first)
        story.begins(3, FOUR, kept=second)
        assert await story.ranks.ready() == ((0, 1, 2, 3) if first and second else (None,) * 4)

    asyncio.run(told())
