"""Pipeline stages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moiety.strategy.stages import stage_layers


@given(st.integers(1, 130), st.integers(1, 40))
def test_stages_partition_the_layers_evenly_and_in_order(num_layers: int, pp: int) -> None:
    stages = stage_layers(num_layers, pp)
    assert len(stages) == pp
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))
    sizes = [len(stage) for stage in stages]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[-1] == min(sizes)  # the output head is work enough
