"""The three ways to time a step agree within the tolerances stated here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from moiety.plan import Options, Phase
from moiety.projection.phase import PoolCase, phase_outcome
from moiety.projection.schedule import schedules
from moiety.search.judge import place
from moiety.strategy.enumeration import enumerate_strategies
from tests.scenarios import LOADS, MLA, dense_model, moe, scenario, small_model

if TYPE_CHECKING:
    from moiety.model.model import Model

WITHOUT_OVERLAP = 0.04
"""Largest relative error of a step where micro-batches follow each other: the short cuts know pipelines and bubbles."""
FOLDED = {"prefill": 0.10, "decode": 0.03, "mixed": 0.04, "training": 0.35}
"""Of a few simulated layers of overlapping micro-batches. Training with pipelines is worst: one forward and one
backward pair other passes than two micro-batches on one stage do."""
PIPELINED = 0.15
"""Of a few simulated layers where pipeline stages overlap micro-batches: the two of a pair go on to the next stage one
after the other, not at once."""
ESTIMATED = {"prefill": 0.25, "decode": 0.25, "mixed": 0.25, "training": 0.40}
"""Of the closed form of overlapping micro-batches, which takes all transfers for hidden that could be."""
MODELS = {"moe": small_model(MLA, moe(shared=512), num_layers=8, dense_layers=2), "dense": dense_model(8)}


@pytest.mark.parametrize("phase", ["prefill", "decode", "mixed", "training"])
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_short_cuts_come_close_to_the_whole_simulation(phase: Phase, overlap: bool, model: Model) -> None:
    case = scenario(model, "h100x16", LOADS[phase])
    options = Options(two_batch_overlap=overlap, dense_parameter_sharding=phase == "training")
    legal = [each.strategy for each in enumerate_strategies(model, 16) if each.is_legal]
    for strategy in legal[:: 5 if model.moe else 1]:
        pool = PoolCase(case, strategy, options, place(case, strategy, options))
        for schedule in schedules(case.workload, phase, strategy, options)[:1]:
            whole, folded, estimated = (
                phase_outcome(pool, phase, schedule, timing=timing).step_s
                for timing in ("simulated", "folded", "estimated")
            )
            paired = overlap and schedule.num_microbatches > 1
            close = FOLDED[phase] if paired else WITHOUT_OVERLAP
            if paired and strategy.pp > 1:
                close = max(close, PIPELINED)
            assert folded == pytest.approx(whole, rel=close), strategy.name
            assert estimated == pytest.approx(whole, rel=ESTIMATED[phase] if paired else WITHOUT_OVERLAP), strategy.name
